"""The worker: dials a proxy, pulls jobs, answers them with an engine's OpenAI app. Importing this does nothing."""
