"""What a stock worker posts: the shapes of `job-done` and `job-stream`. Values stay the bytes that they were."""

import re

import msgspec

from proxy.jobs.lifecycle import Status
from proxy.service.json_text import MOST_OUTPUT_STEPS, apart, has_too_much, utf8_fault

ABSENT = msgspec.Raw(b"")
NULL = b"null"
TRUE = b"true"
ERROR_BYTES = 256 * 1024  # of an error; what is longer is cut, and not taken apart
MEND_BYTES = 4 * 1024 * 1024  # of a result that Python wrote and nobody else can read; more takes too long to mend
MOST_ELEMENTS = 250_000  # of a list that is taken apart: each costs about 100 bytes beside its own
IN_PROGRESS = b'"%b"' % Status.IN_PROGRESS.encode()

_NO_NUMBER = re.compile(rb'("(?:[^"\\]++|\\.)*+")|-?Infinity|NaN', re.DOTALL)


class TooManyElementsError(ValueError):
    """A list has more elements than are taken apart."""


class Result(msgspec.Struct):
    """The body of `job-done` or `job-stream`."""

    output: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    status: msgspec.Raw = ABSENT
    stop_pod: msgspec.Raw = msgspec.field(default=ABSENT, name="stopPod")

    @property
    def is_progress(self) -> bool:
        """Whether it is not the end, but how far the job is."""
        return bytes(self.status) == IN_PROGRESS

    @property
    def refreshes(self) -> bool:
        """Whether the worker is to be made anew after this job."""
        return bytes(self.stop_pod) == TRUE

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
_one_decoder = msgspec.json.Decoder(tuple[msgspec.Raw])  # gives up at a second element


async def read_result(body: bytes) -> Result | None:
    """The result in a body; None when it is none."""
    return await apart(_read, body)


def _read(body: bytes) -> Result | None:
    if utf8_fault(body) is not None or has_too_much(body, MOST_OUTPUT_STEPS):
        return None
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        pass
    if len(body) > MEND_BYTES:
        return None
    try:  # Python's own writer, which the SDK uses, lets NaN and Infinity through, which JSON does not have
        return _decoder.decode(_NO_NUMBER.sub(lambda found: found[1] or NULL, body))
    except (msgspec.MsgspecError, RecursionError):
        return None


def elements(value: bytes) -> list[bytes] | None:
    """The elements of a JSON list, each as it was; None when it is no list. Raises `TooManyElementsError`."""
    if value[:1] != b"[":
        return None
    try:  # what most answers are, however much is in it
        return [bytes(_one_decoder.decode(value)[0])]
    except msgspec.ValidationError:
        pass
    if value.count(b",") >= MOST_ELEMENTS:
        raise TooManyElementsError
    return [bytes(element) for element in _list_decoder.decode(value)]


def error_text(error: bytes) -> str:
    """An error as a string, which is all that clients take: of another JSON value its text."""
    if len(error) > ERROR_BYTES:
        return error[:ERROR_BYTES].decode(errors="replace")
    value = msgspec.json.decode(error)
    return value if isinstance(value, str) else error.decode()
