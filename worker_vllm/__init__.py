"""The worker: dials a proxy, takes jobs, and answers them with an engine's OpenAI app.

Importing this package has no side effects.
"""
