"""The channel for unmodified Runpod workers: their SDK polls for jobs and posts results by HTTP."""
