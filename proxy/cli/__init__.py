"""The command line: `vllm-serverless`."""

from proxy.cli.commands import main

__all__ = ["main"]
