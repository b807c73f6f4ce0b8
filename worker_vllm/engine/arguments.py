"""What the environment and the command line say to vLLM, put through vLLM's own parser.

The order, strongest last: VLLM_CONFIG_FILE, a variable named like a flag, the image's own names, VLLM_EXTRA_ARGS, the
command line.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import NoReturn

import structlog

from worker_vllm.engine.base import EngineError
from worker_vllm.engine.flags import CONFIG, flags_from, ignored

EXTRA = "VLLM_EXTRA_ARGS"
COMMAND_LINE = "the command line"


class _Strict(argparse.ArgumentParser):
    """Raises instead of printing a usage of several pages and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise EngineError(
            f"That was vLLM's help; nothing was started. {message or status or ''}".strip()
        )


def strict(parser_class: type[argparse.ArgumentParser]) -> type[argparse.ArgumentParser]:
    """The same kind of parser, but one that raises `EngineError`."""
    return type("StrictParser", (_Strict, parser_class), {})


def parse(
    parser: argparse.ArgumentParser, variables: Mapping[str, str], arguments: Sequence[str]
) -> argparse.Namespace:
    """Everything that is said to vLLM. `EngineError` is one line that names the variable, or the flag, that is wrong.

    Each variable is parsed alone before all are, for only then it is sure which of them the parser refuses.
    """
    actions = parser._actions  # noqa: SLF001 - argparse has no other list of them
    for name, reason in ignored(variables, actions).items():
        structlog.get_logger().warning("worker.variable_ignored", variable=name, reason=reason)
    extra = _split(variables.get(EXTRA, ""))
    raw = [*extra, *arguments]
    flags = [
        flag
        for flag in flags_from(variables, actions)
        if flag.words[0] != CONFIG or CONFIG not in raw
    ]
    for flag in flags:
        _parse(parser, flag.words, flag.variable)
    _parse(parser, extra, EXTRA)
    return _parse(parser, [*(word for flag in flags for word in flag.words), *raw], COMMAND_LINE)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise EngineError(f"{EXTRA} is wrong: {error}") from None


def _parse(
    parser: argparse.ArgumentParser, words: Sequence[str], source: str
) -> argparse.Namespace:
    try:
        return parser.parse_args(list(words))
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - vLLM's types and its reader of files raise what they like
        said = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(f"{source} is wrong: {said}") from None
