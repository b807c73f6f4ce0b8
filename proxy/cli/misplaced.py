"""Explain arguments that a command does not have: flags of vLLM before `--`, and misspelt ones.

Values of arguments are not shown if they may be secrets.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

VLLM_COMMANDS = ("up", "worker")
# A program of the worker, which knows the flags of the installed vLLM.
FLAG_NAMES_COMMAND = (sys.executable, "-m", "worker_vllm.engine.flag_names")
FLAG_NAMES_TIMEOUT_SECONDS = 30.0
# Arguments are not repeated in an example if they may contain a secret, or if a shell would change
# them inside quotation marks.
_NOT_SHOWN = re.compile(r"key|token|secret|[\"'$`\\!\s]", re.IGNORECASE)


class Explanation(NamedTuple):
    """A message, and the arguments of the command line to show after it, if any."""

    text: str
    example: str = ""


class _Parts(NamedTuple):
    """The words of a command line: with the command's options, others before `--`, after `--`."""

    own: list[str]
    others: list[str]
    after: list[str]


def explain(
    command: str,
    args: Sequence[str],
    takes_value: Mapping[str, bool],
    vllm_flags: Callable[[], frozenset[str]],
) -> Explanation | None:
    """Explain the first argument before `--` that is not an option of the command.

    `takes_value` has the options of the command. Returns None without such an argument, or if
    Typer's own message is as good.
    """
    parts = _parts(args, takes_value)
    if not parts.others or "--help" in parts.own:
        return None
    name = parts.others[0].partition("=")[0]
    if not name.startswith("-"):
        if command not in VLLM_COMMANDS:
            return None
        return Explanation(
            f"unexpected argument {name!r}. The model is given with --model, and flags of vLLM come"
            " after `--`."
        )
    if f"{name}-file" in takes_value:
        return Explanation(
            f"{name} does not exist, because other users could read its value in the process list."
            f" Use {name}-file PATH, or a variable: see --help."
        )
    known = vllm_flags() if command in (*VLLM_COMMANDS, "proxy") else frozenset[str]()
    if _plain(name) in known:
        return _vllm_explanation(command, f"{name} is a flag of vLLM", parts)
    # A flag that takes a secret is deprecated, and has another one for a file.
    own = [option for option in takes_value if f"{option}-file" not in takes_value]
    close = get_close_matches(name, [*own, *known], n=1)
    if not close:
        return None
    if close[0] in takes_value:
        return Explanation(f"unknown option {name}. Did you mean {close[0]}?")
    parts.others[0] = close[0] + parts.others[0].removeprefix(name)
    text = f"unknown option {name}. Did you mean {close[0]}? It is a flag of vLLM"
    return _vllm_explanation(command, text, parts)


def flags_of_vllm() -> frozenset[str]:
    """Return the flags of the vLLM that is installed here; empty if none is."""
    try:
        ended = subprocess.run(
            FLAG_NAMES_COMMAND,
            capture_output=True,
            text=True,
            timeout=FLAG_NAMES_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(ended.stdout.split())


def _vllm_explanation(command: str, text: str, parts: _Parts) -> Explanation:
    if command not in VLLM_COMMANDS:
        return Explanation(
            f"{text}, and the proxy runs no model. Pass it to the worker:"
            " vllm-serverless worker …, after `--`."
        )
    words = [*parts.others, *parts.after]
    if any(_NOT_SHOWN.search(word) for word in words):
        words = [parts.others[0].partition("=")[0], "…"]
    example = ["…"] if parts.own else []
    return Explanation(
        f"{text}. Flags of vLLM come after `--`: ", " ".join([*example, "--", *words])
    )


def _parts(args: Sequence[str], takes_value: Mapping[str, bool]) -> _Parts:
    parts = _Parts([], [], [])
    words = list(args)
    while words:
        word = words.pop(0)
        if word == "--":
            parts.after.extend(words)
            break
        name, separator, _ = word.partition("=")
        if name in takes_value:
            parts.own.append(word)
            if takes_value[name] and not separator and words:
                parts.own.append(words.pop(0))
        else:
            parts.others.append(word)
    return parts


def _plain(name: str) -> str:
    """Return a flag as vLLM's list has it, without `no-` and the part of a nested value."""
    plain = name.partition(".")[0].replace("_", "-")
    return plain.replace("--no-", "--", 1)
