"""The JSON responses of the queue API: jobs, streams and errors.

Output of a worker is inserted as the bytes that the worker sent.
"""

from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from proxy.access.limits import Share
from proxy.api.errors import ApiError
from proxy.api.http import ANSWER_PART_BYTES, abort_of, send_body
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Cursor, Input, Job, Millis


class JsonAnswer:
    """A complete JSON response, as an ASGI application. The share of its bytes is given back once
    it has been sent.

    Memory for large output was reserved before it was read. The rest is small, so it is charged
    even if it exceeds the budget: output that was consumed must reach its client.
    """

    def __init__(self, content: bytes, share: Share, headers: list[tuple[bytes, bytes]]) -> None:
        if len(content) > ANSWER_PART_BYTES:
            share.hold(len(content))
        self._content = content
        self._share = share
        length = (b"content-length", b"%d" % len(content))
        self._headers = [length, (b"content-type", b"application/json"), *headers]

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        with self._share:
            await send(
                {"type": "http.response.start", "status": HTTPStatus.OK, "headers": self._headers}
            )
            await send_body(send, self._content, abort_of(scope))


def refusal(error: ApiError) -> Response:
    """Return the response for a rejected request."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(queue_error(error), error.row.status, headers, media_type="application/json")


def queue_error(error: ApiError) -> bytes:
    """Return the JSON body of an error in the format of the queue API."""
    return msgspec.json.encode({"error": error.message})


# Runpod's limit for one streamed element; a longer text is split.
ELEMENT_MAX_BYTES = 1024 * 1024


# The value of the two highest bits in every byte of a UTF-8 character except its first.
UTF8_CONTINUATION = 0x80


class _Element(msgspec.Struct):
    output: msgspec.Raw
    metrics: msgspec.Raw = msgspec.Raw(b"")


_decoder = msgspec.json.Decoder(_Element)
_encode = msgspec.json.Encoder().encode


def brief(job: Job) -> bytes:
    """Return the response of `run`, `cancel` and `retry`."""
    return msgspec.json.encode({"id": job.id, "status": job.status})


def full(
    job: Job,
    elements: Sequence[bytes],
    now: Millis,
    reason: str = "",
    progress: bytes | None = None,
) -> bytes:
    """Return the response of `status`, `status-sync` and `runsync`.

    `elements` is the job's output log. `progress` is shown as `output` in its place.
    """
    return _object(_fields(job, elements, now, reason, progress))


def notice(job: Job, elements: Sequence[bytes], now: Millis, webhook: str) -> bytes:
    """Return the body of a webhook: the response of `status`, with `input` and `webhook` added.

    `webhook` is the URL as the client sent it.
    """
    fields = list(_fields(job, elements, now, ""))
    if isinstance(job.submission.work, Input):
        fields.append([b'"input":', job.submission.work.body])
    fields.append([b'"webhook":', _text(webhook)])
    return _object(fields)


def stream(job: Job, elements: Sequence[bytes], following: Cursor | None = None) -> bytes:
    """Return the response of `stream`; with `following` as `next`, for a client that has its own
    cursor.
    """
    # Joined once, because the output can be large.
    pieces = [b'{"status":', _text(job.status), b',"stream":[']
    for element in elements:
        for part in split(element):
            pieces += (part, b",")
    if elements:
        pieces.pop()
    pieces.append(b"]" if following is None else b'],"next":%b' % _text(str(following)))
    pieces.append(b"}")
    return b"".join(pieces)


def split(element: bytes) -> list[bytes]:
    """Split an element whose output is a text longer than `ELEMENT_MAX_BYTES` into several."""
    if len(element) <= ELEMENT_MAX_BYTES:
        return [element]
    found = _decoder.decode(element)
    output = bytes(found.output)
    if not output.startswith(b'"'):
        return [element]
    text = msgspec.json.decode(output, type=str)
    encoded = text.encode()
    metrics = b',"metrics":' + bytes(found.metrics) if bytes(found.metrics) else b""
    parts = []
    start = 0
    while start < len(encoded):
        end = min(start + ELEMENT_MAX_BYTES, len(encoded))
        # Do not split between the bytes of one character.
        while end < len(encoded) and encoded[end] & 0xC0 == UTF8_CONTINUATION:
            end -= 1
        parts.append(b'{"output":%b%b}' % (_text(encoded[start:end].decode()), metrics))
        start = end
    return parts


def delay(job: Job, now: Millis) -> int | None:
    """Return the milliseconds in the queue, so far or until the job was last handed out.

    Returns None for a job that ended in the queue.
    """
    if job.taken_at is not None:
        return max(0, job.taken_at - job.created_at)
    return max(0, now - job.created_at) if job.status is Status.IN_QUEUE else None


def execution(job: Job, now: Millis) -> int | None:
    """Return the milliseconds of the last run, so far or in total; None if there was no run."""
    if job.taken_at is None:
        return None
    end = job.finished_at if job.finished_at is not None else now
    return max(0, end - job.taken_at)


def _object(fields: Iterable[Sequence[bytes]]) -> bytes:
    """Return a JSON object. The pieces of its fields are copied once, since they can be large."""
    pieces: list[bytes] = []
    for field in fields:
        pieces.append(b"," if pieces else b"{")
        pieces.extend(field)
    pieces.append(b"}")
    return b"".join(pieces)


def _fields(
    job: Job, elements: Sequence[bytes], now: Millis, reason: str, progress: bytes | None = None
) -> Iterator[Sequence[bytes]]:
    """Yield each field in pieces."""
    if (waited := delay(job, now)) is not None:
        yield [b'"delayTime":%d' % waited]
    if job.error is not None and job.status is not Status.CANCELLED:
        yield [b'"error":', _text(job.error.message)]
    if (ran := execution(job, now)) is not None:
        yield [b'"executionTime":%d' % ran]
    yield [b'"id":', _text(job.id)]
    output = _output(job, elements) if progress is None else [progress]
    if output:
        yield [b'"output":', *output]
    if reason:
        yield [b'"reason":', _text(reason)]
    yield [b'"retries":%d' % job.failures]
    yield [b'"status":', _text(job.status)]
    if job.worker is not None:
        yield [b'"workerId":', _text(job.worker)]


def _output(job: Job, elements: Sequence[bytes]) -> list[bytes]:
    """Return the output in pieces; none if the job has no output."""
    if job.output is not None:
        return [job.output]
    if not isinstance(job.submission.work, Input):
        # The output of an OpenAI call went to its client.
        return []
    if job.status is not Status.COMPLETED and not (elements and job.is_terminal):
        return []
    pieces = [b"["]
    for element in elements:
        pieces.append(_decoder.decode(element).output)
        pieces.append(b",")
    if elements:
        pieces.pop()
    pieces.append(b"]")
    return pieces


def _text(text: str) -> bytes:
    try:
        return _encode(text)
    except UnicodeEncodeError:
        return _encode(text.encode("utf-8", "replace").decode())
