"""The command as the user typed it, in usage lines and in examples."""

import re
import sys
from typing import Any

from typer.core import TyperCommand

from proxy.cli.console import say
from proxy.cli.credentials import EX_USAGE
from proxy.cli.misplaced import explain, flags_of_vllm
from proxy.settings import was_started_by_make

PROGRAM = "vllm-serverless"
# The name of the arguments after `--` in usage lines.
VLLM_FLAGS = "VLLM_FLAGS"
_EXAMPLE = re.compile(rf"{PROGRAM} up (.*)")


def program() -> str:
    """Return the name of the program that the user started."""
    return "make" if was_started_by_make() else PROGRAM


def command_line(command: str, text: str) -> str:
    """Return the line that starts one of the commands with these arguments."""
    if command == "up" and was_started_by_make():
        return f'make up ARGS="{text}"'
    return f"{PROGRAM} {command} {text}"


class ExplainingCommand(TyperCommand):
    """A command that names itself as the user typed it, and explains arguments that are wrong."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        given = super().collect_usage_pieces(ctx)
        pieces = [f"[-- {VLLM_FLAGS}]" if VLLM_FLAGS in piece else piece for piece in given]
        return [f'ARGS="{" ".join(pieces)}"'] if was_started_by_make() else pieces

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            self.epilog = _EXAMPLE.sub(lambda found: command_line("up", found[1]), self.epilog)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        takes_value = {
            name: not getattr(one, "is_flag", False)
            for one in self.get_params(ctx)
            if one.param_type_name == "option"
            for name in (*one.opts, *one.secondary_opts)
        }
        command = str(ctx.info_name)
        found = explain(command, args, takes_value, flags_of_vllm)
        if found:
            example = command_line(command, found.example) if found.example else ""
            say(f"{PROGRAM}: {found.text}{example}")
            sys.exit(EX_USAGE)
        try:
            return super().parse_args(ctx, args)
        finally:
            if was_started_by_make():
                # Typer's messages about wrong usage end with this flag.
                ctx.help_option_names = ["ARGS=--help"]
