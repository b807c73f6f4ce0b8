"""The HTTP status of an OpenAI call that failed on a stock worker, found again in what its error says.

worker-vllm loses it on the way: the SDK turns its error object into the text that Python shows for it. Newer images
put the status of their engine into the message; older ones have it as `code`.
"""

import ast
import re
from typing import Any, NamedTuple

import msgspec

from proxy.channel.stock.results import ERROR_BYTES, error_text

MOST_CHARACTERS = 32 * 1024  # of an error in Python's writing that is taken apart: that takes 100 ns for each
FIRST_ERROR, LAST_ERROR = 400, 599
SICK = "vLLM server process is not running"  # the worker lives on, and fails every job from now on

_UPSTREAM = re.compile(r"vLLM returned HTTP (\d{3}): (.*)", re.DOTALL)
_PIECE = re.compile(r"""(?P<text>'(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+")|[A-Za-z]++|.""", re.DOTALL)
_NAMES = {"None": b"null", "True": b"true", "False": b"false", "(": b"[", ")": b"]"}
_TRACE = re.compile(r"handler: (.*?) \ntraceback: ", re.DOTALL)


class _Kind(msgspec.Struct):
    object: msgspec.Raw = msgspec.Raw(b"null")


class Failure(NamedTuple):
    """An error answer. Without a status, it is one that this proxy has to put into words."""

    message: str
    status: int = 0
    body: bytes = b""


def find_failure(error: bytes) -> Failure:
    """What an `error` says, as it is written."""
    if len(error) > ERROR_BYTES:
        return Failure(error_text(error))
    try:
        return read_failure(msgspec.json.decode(error))
    except (msgspec.MsgspecError, RecursionError):
        return Failure(error.decode(errors="replace"))


def read_failure(error: Any) -> Failure:
    """What an `error`, whatever JSON value it is, says."""
    value = _take_apart(error) if isinstance(error, str) else error
    if isinstance(value, dict):
        return _of_object(value)
    return Failure(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def is_error_object(output: bytes) -> bool:
    """Whether an output is an error all the same, as images with an old vLLM give it."""
    try:
        return bytes(msgspec.json.decode(output, type=_Kind).object) == b'"error"'
    except (msgspec.MsgspecError, RecursionError):
        return False


def _take_apart(text: str) -> Any:
    if found := _TRACE.match(text):
        text = found.group(1)
    if text[:1] != "{":
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        pass
    if len(text) > MOST_CHARACTERS:
        return text
    try:
        return msgspec.json.decode(_as_json(text))
    except (ValueError, SyntaxError, RecursionError):  # of msgspec's, too
        return text


def _as_json(text: str) -> bytes:
    """The same in JSON. Piece by piece: Python's own reader, given something nested deeply enough, breaks for good."""
    return b"".join(map(_piece_as_json, _PIECE.finditer(text)))


def _piece_as_json(piece: re.Match[str]) -> bytes:
    if piece.lastgroup == "text":
        return msgspec.json.encode(ast.literal_eval(piece[0]))
    return _NAMES.get(piece[0]) or piece[0].encode()


def _of_object(value: dict[str, Any]) -> Failure:
    if isinstance(value.get("error"), dict):
        return _of_object(value["error"])
    message = value.get("message", value.get("error_message"))
    message = message if isinstance(message, str) else str(value)
    if found := _UPSTREAM.match(message):
        status, body = int(found.group(1)), found.group(2).encode()
        if FIRST_ERROR <= status <= LAST_ERROR:
            return Failure(message, status, body if _is_object(body) else _body(status, found.group(2)))
    code = value.get("code")
    if isinstance(code, int) and FIRST_ERROR <= code <= LAST_ERROR:
        fields = {name: field for name, field in value.items() if name != "object"}
        return Failure(message, code, msgspec.json.encode({"error": fields}, enc_hook=str))
    return Failure(message)


def _body(status: int, message: str) -> bytes:
    told = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
    return msgspec.json.encode({"error": told})


def _is_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
