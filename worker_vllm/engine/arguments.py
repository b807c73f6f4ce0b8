"""Parse the environment and the command line with vLLM's own parser.

In order of increasing precedence: VLLM_CONFIG_FILE, variables named like a flag, the names of the
worker-vllm image, VLLM_EXTRA_ARGS, the command line.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import NoReturn

import structlog

from worker_vllm.engine.base import EngineError
from worker_vllm.engine.flags import CONFIG_FLAG, flags_from, ignored
from worker_vllm.foreign import ForeignErrors

EXTRA_ARGUMENTS = "VLLM_EXTRA_ARGS"
COMMAND_LINE = "the command line"


class _Strict(argparse.ArgumentParser):
    """Raises an exception instead of printing a usage of several pages and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        detail = message or status or ""
        raise EngineError(f"vLLM's help was printed; nothing was started. {detail}".strip())


def strict(parser_class: type[argparse.ArgumentParser]) -> type[argparse.ArgumentParser]:
    """Return a subclass of `parser_class` that raises exceptions instead of exiting."""
    return type("StrictParser", (_Strict, parser_class), {})


def parse(
    parser: argparse.ArgumentParser, variables: Mapping[str, str], arguments: Sequence[str]
) -> argparse.Namespace:
    """Return the arguments of vLLM from all sources.

    Raises `EngineError` with one line that names the variable or the flag that is invalid. Each
    variable is parsed alone before all of them together, because only then it is certain which one
    the parser rejects.
    """
    actions = parser._actions  # noqa: SLF001 - argparse has no public list of them
    for name, reason in ignored(variables, actions).items():
        structlog.get_logger().warning("worker.variable_ignored", variable=name, reason=reason)
    extra = extra_arguments(variables)
    raw = [*extra, *arguments]
    flags = [
        flag
        for flag in flags_from(variables, actions)
        if flag.words[0] != CONFIG_FLAG or CONFIG_FLAG not in raw
    ]
    for flag in flags:
        _parse(parser, flag.words, flag.variable)
    _parse(parser, extra, EXTRA_ARGUMENTS)
    words: list[str] = []
    for flag in flags:
        words += flag.words
    return _parse(parser, [*words, *raw], COMMAND_LINE)


def extra_arguments(variables: Mapping[str, str]) -> list[str]:
    """Return the flags in VLLM_EXTRA_ARGS. Raises `EngineError` if a quotation mark is missing."""
    try:
        return shlex.split(variables.get(EXTRA_ARGUMENTS, ""))
    except ValueError as error:
        raise EngineError(f"{EXTRA_ARGUMENTS} is wrong: {error}") from None


def _parse(
    parser: argparse.ArgumentParser, words: Sequence[str], source: str
) -> argparse.Namespace:
    # vLLM's argument types and its reader of configuration files raise exceptions of any kind.
    with ForeignErrors(EngineError, lambda error: f"{source} is wrong: {_one_line(error)}"):
        return parser.parse_args(list(words))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
