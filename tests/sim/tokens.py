"""Checks of the tokens that clients receive: `"<client> <run> <index> "`."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

TOKEN = re.compile(r"(\S+) (\S+) (\d+) ")
# The name of the stock worker, with which the names of its runs begin.
STOCK = "stock"


class Token(NamedTuple):
    """One token: the client that it is for, the run that made it, and its index in the run."""

    client: str
    run: str
    index: int


def read_tokens(text: str) -> list[Token]:
    """Return the tokens of a text. Raises ValueError for anything else in it."""
    if TOKEN.sub("", text):
        raise ValueError(f"not tokens: {text!r}")
    return [Token(client, run, int(index)) for client, run, index in TOKEN.findall(text)]


def texts(output: Any) -> str:
    """Return all text of a job's output: one value, or a list of elements."""
    match output:
        case list():
            return "".join(texts(element) for element in output)
        case {"output": element} if "text" not in output:
            return texts(element)
        case {"text": list(parts)}:
            return "".join(parts)
        case str():
            return _text_of_events(output)
    return ""


def _text_of_events(stream: str) -> str:
    """Return the text in events of a chat stream."""
    text = ""
    for line in stream.splitlines():
        data = line.removeprefix("data: ")
        if data.startswith("{") and (choices := json.loads(data).get("choices")):
            text += choices[0]["delta"].get("content") or ""
    return text


def is_of_stock_worker(tokens: Sequence[Token]) -> bool:
    """Return True if the tokens come from a worker with Runpod's SDK."""
    return any(token.run.startswith(STOCK) for token in tokens)


def fault_of(
    tokens: Sequence[Token], client: str, *, total: int, is_whole: bool, may_skip: bool = False
) -> str | None:
    """Return the error in the tokens that one client has received from one job, or None.

    `is_whole`: all `total` tokens must be there. `may_skip`: some may have been lost on the way.
    The SDK of a stock worker loses and repeats elements: only its job's end shows whether it has.
    """
    if any(token.client != client for token in tokens):
        return f"I8: tokens of another client: {_show(tokens)}"
    if len({token.run for token in tokens}) > 1:
        return f"I4: tokens of several runs: {_show(tokens)}"
    if not is_whole and is_of_stock_worker(tokens):
        return None
    indices = [token.index for token in tokens]
    if may_skip:
        if indices != sorted(set(indices)):
            return f"I4: repeated or reordered tokens: {_show(tokens)}"
        return None
    if indices != list(range(len(tokens))):
        return f"I4: repeated or missing tokens: {_show(tokens)}"
    if is_whole and len(tokens) != total:
        return f"I4: {len(tokens)} of {total} tokens in an answer that ended well"
    return None


def _show(tokens: Sequence[Token]) -> str:
    return " ".join(f"{token.client}/{token.run}/{token.index}" for token in tokens)
