"""The description of this proxy, OpenAPI 3.1, made of the tables that its routes are made of."""
