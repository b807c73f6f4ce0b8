"""What a stock worker posts: the shapes of `job-done` and `job-stream`. Values stay the bytes that they were."""

import asyncio
import json
from typing import Any

import msgspec

from proxy.jobs.lifecycle import Status

THREAD_ABOVE = 256 * 1024  # bytes: a megabyte takes about a millisecond, and the event loop has other clients
ABSENT = msgspec.Raw(b"")
NULL = b"null"


class Result(msgspec.Struct):
    """The body of `job-done` or `job-stream`."""

    output: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    status: Any = None
    stop_pod: Any = msgspec.field(default=None, name="stopPod")

    @property
    def is_progress(self) -> bool:
        """Whether it is not the end, but how far the job is."""
        return bool(self.status == Status.IN_PROGRESS)

    @property
    def has_failed(self) -> bool:
        """Whether the handler says that it could not."""
        return bytes(self.error) not in {b"", NULL}

    @property
    def value(self) -> bytes:
        """The output as JSON. A handler that returns nothing, or `{}`, has none."""
        return bytes(self.output) or NULL


_decoder = msgspec.json.Decoder(Result)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


async def read_result(body: bytes) -> Result | None:
    """The result in a body; None when it is none."""
    return await asyncio.to_thread(_read, body) if len(body) > THREAD_ABOVE else _read(body)


def _read(body: bytes) -> Result | None:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:  # Python's own writer, which the SDK uses, lets NaN and Infinity through, which JSON does not have
        mended = json.dumps(json.loads(body, parse_constant=_no_number), ensure_ascii=False)
        return _decoder.decode(mended.encode())
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None


def _no_number(_: str) -> None:
    return None


def elements(value: bytes) -> list[bytes] | None:
    """The elements of a JSON list, each as it was; None when it is no list."""
    if value[:1] != b"[":
        return None
    return [bytes(element) for element in _list_decoder.decode(value)]


def error_text(error: bytes) -> str:
    """An error as a string, which is all that clients take: of another JSON value its text."""
    value = msgspec.json.decode(error)
    return value if isinstance(value, str) else error.decode()
