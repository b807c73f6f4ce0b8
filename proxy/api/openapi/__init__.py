"""The OpenAPI 3.1 document of the proxy, generated from the same tables as its routes."""
