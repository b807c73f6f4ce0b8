"""The engines: vLLM in this process, an OpenAI server elsewhere, or a script for tests."""
