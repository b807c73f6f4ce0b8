"""The command line: `vllm-serverless`."""

from proxy.wire.interrupt import silent_interrupt

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    with silent_interrupt():
        # Importing takes up to a second, in which a user may press Ctrl-C.
        from proxy.cli import commands  # noqa: PLC0415
    commands.main()
