"""The channel for unmodified Runpod workers: their SDK polls for jobs over HTTP, and posts what comes of them."""
