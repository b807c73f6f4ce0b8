import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import pytest

from tests.unit.worker.support import DEADLINE, app_of
from worker_vllm.asgi import (
    UNREAD_HIGH_BYTES,
    CutShortError,
    Exchange,
    Head,
    Message,
    Receive,
    Request,
    Scope,
    Send,
    fetch,
)

GET = Request("GET", "/v1/models")


async def collect(answer: AsyncIterator[Head | bytes]) -> list[Head | bytes]:
    return [piece async for piece in answer]


async def test_a_response_is_a_head_followed_by_its_body() -> None:
    app = app_of(b"data: 1\n\n", b"data: 2\n\n")

    pieces = await collect(Exchange(app, GET))

    assert pieces[0] == Head(200, "text/event-stream")
    assert (
        b"".join(piece for piece in pieces[1:] if isinstance(piece, bytes))
        == b"data: 1\n\ndata: 2\n\n"
    )


async def test_pieces_of_one_turn_of_the_loop_are_joined() -> None:
    app = app_of(*(b"data: %d\n\n" % number for number in range(100)))

    pieces = await collect(Exchange(app, GET))

    assert len(pieces) == 2


async def test_the_scope_looks_like_a_request_over_http() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)
        seen["request"] = await receive()
        await app_of(b"ok")(scope, receive, send)

    await fetch(
        app,
        Request("POST", "/v1/responses/r1?stream=true", "application/json", b"{}"),
        "Bearer key",
    )

    # With 2.4 a cancelled stream would not be aborted.
    assert seen["asgi"] == {"version": "3.0", "spec_version": "2.3"}
    assert (seen["path"], seen["query_string"]) == ("/v1/responses/r1", b"stream=true")
    assert seen["request"] == {"type": "http.request", "body": b"{}", "more_body": False}
    headers = dict(seen["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"2"
    assert headers[b"authorization"] == b"Bearer key"
    assert headers[b"host"]


async def test_every_call_has_a_state_of_its_own() -> None:
    states: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        states.append(scope["state"])
        await app_of()(scope, receive, send)

    await fetch(app, GET)
    await fetch(app, GET)

    assert states[0] is not states[1]


async def test_closing_disconnects_the_app_and_waits_for_it() -> None:
    steps: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        message = await receive()
        steps.append(message["type"])
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"too late", "more_body": True})
        steps.append("ended")

    async with asyncio.timeout(DEADLINE), aclosing(Exchange(app, GET)) as answer:
        await anext(answer)

    assert steps == ["http.disconnect", "ended"]


async def test_a_cancelled_task_waits_for_the_app_too() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        started.set()
        await receive()
        ended.set()

    task = asyncio.create_task(fetch(app, GET))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended.is_set()


async def test_a_body_without_its_last_part_is_incomplete() -> None:
    with pytest.raises(CutShortError):
        await collect(Exchange(app_of(b"data: 1\n\n", whole=False), GET))


async def test_the_app_s_own_exception_is_the_cause() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a failure of the app")

    with pytest.raises(CutShortError) as caught:
        await collect(Exchange(app, GET))

    assert isinstance(caught.value.__cause__, RuntimeError)


async def test_an_exception_after_a_complete_response_is_ignored() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await app_of(b"{}", status=500)(scope, receive, send)
        raise RuntimeError("Starlette raises again what it has answered with 500")

    assert await fetch(app, GET) == (500, b"{}")


async def test_the_app_waits_above_the_high_watermark_of_unread_bytes() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
            sent += 4096
        await send({"type": "http.response.body", "body": b""})

    async with aclosing(Exchange(app, GET)) as answer:
        # Returns the head. The app has run up to the watermark.
        await anext(answer)
        for _ in range(10):
            await asyncio.sleep(0)
        # The bytes that were taken, and those that may be unread.
        assert sent <= 2 * UNREAD_HIGH_BYTES + 8192
        rest = [piece async for piece in answer]

    assert sum(len(piece) for piece in rest if isinstance(piece, bytes)) == 100 * 4096


async def test_a_status_may_be_an_enum_member() -> None:
    assert await fetch(app_of(status=HTTPStatus.BAD_REQUEST), GET) == (400, b"")


async def test_an_app_that_ignores_cancellation_is_awaited() -> None:
    forced, may_end = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            forced.set()
            await may_end.wait()

    async def ask() -> None:
        async with aclosing(Exchange(app, GET, disconnect_seconds=0.01)) as answer:
            await anext(answer)

    async with asyncio.timeout(DEADLINE):
        asking = asyncio.create_task(ask())
        await forced.wait()
        assert not asking.done()
        may_end.set()
        await asking


async def test_an_app_that_ignores_the_disconnect_is_cancelled() -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = {"type": "http.response.start", "status": 200, "headers": []}
        await send(message)
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    async with aclosing(Exchange(app, GET, disconnect_seconds=0.01)) as answer:
        await anext(answer)

    async with asyncio.timeout(DEADLINE):
        await gone.wait()


class Taker:
    """Takes the pieces that are offered, up to a limit."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.limit = limit
        self.taken: list[Head | bytes] = []

    def offer(self, piece: Head | bytes) -> bool:
        if len(self.taken) >= self.limit:
            return False
        self.taken.append(piece)
        return True


def body_part(body: bytes, *, more_body: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


def start() -> Message:
    return {"type": "http.response.start", "status": 200, "headers": []}


async def test_offered_pieces_are_not_yielded_and_are_joined_for_each_turn() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for number in range(3):
            await send(body_part(b"%d" % number))
            await send(body_part(b"%d, " % number))
            await asyncio.sleep(0)
        await send(body_part(b"end", more_body=False))

    taker = Taker()
    yielded = await collect(Exchange(app, GET, offer=taker.offer))

    assert yielded == []
    assert taker.taken == [Head(200, ""), b"00, ", b"11, ", b"22, ", b"end"]


async def test_nothing_is_offered_while_the_reader_works_on_a_piece() -> None:
    may_end = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for number in range(5):
            await send(body_part(b"%d" % number))
            await asyncio.sleep(0)
        await may_end.wait()
        await send(body_part(b"end", more_body=False))

    taker = Taker(limit=2)
    async with asyncio.timeout(DEADLINE), aclosing(Exchange(app, GET, offer=taker.offer)) as answer:
        assert await anext(answer) == b"1"
        taker.limit = 100
        for _ in range(10):
            await asyncio.sleep(0)
        # The reader has not asked for more yet.
        assert taker.taken == [Head(200, ""), b"0"]
        may_end.set()
        assert await collect(answer) == []

    assert taker.taken == [Head(200, ""), b"0", b"234", b"end"]


async def test_the_app_waits_while_the_reader_works_on_a_refused_piece() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        for _ in range(100):
            await send(body_part(b"x" * 4096))
            sent += 4096
        await send(body_part(b"", more_body=False))

    taker = Taker(limit=1)
    async with asyncio.timeout(DEADLINE), aclosing(Exchange(app, GET, offer=taker.offer)) as answer:
        first = await anext(answer)
        for _ in range(10):
            await asyncio.sleep(0)
        assert sent <= 2 * UNREAD_HIGH_BYTES + 8192
        rest = await collect(answer)

    assert sum(len(piece) for piece in [first, *rest] if isinstance(piece, bytes)) == 100 * 4096


async def test_a_failure_after_the_head_cuts_an_offered_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await asyncio.sleep(0)
        await send(body_part(b"1"))
        raise RuntimeError("a failure of the app")

    taker = Taker()
    with pytest.raises(CutShortError) as caught:
        await collect(Exchange(app, GET, offer=taker.offer))

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert taker.taken == [Head(200, ""), b"1"]


async def test_an_offered_response_without_its_last_part_is_incomplete() -> None:
    taker = Taker()
    with pytest.raises(CutShortError):
        await collect(Exchange(app_of(b"1", whole=False), GET, offer=taker.offer))

    assert taker.taken == [Head(200, "text/event-stream"), b"1"]


async def test_nothing_is_offered_after_the_disconnect() -> None:
    steps: list[str] = []
    begun = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        begun.set()
        # It waits for the end of the turn when the reader leaves.
        await send(body_part(b"too late"))
        steps.append((await receive())["type"])
        await send(body_part(b"too late"))
        await asyncio.sleep(0)
        await send(body_part(b"too late", more_body=False))
        steps.append("ended")

    taker = Taker()
    async with asyncio.timeout(DEADLINE), aclosing(Exchange(app, GET, offer=taker.offer)) as answer:
        reading = asyncio.ensure_future(anext(answer))
        await begun.wait()
        await answer.aclose()
        await asyncio.wait({reading})

    assert steps == ["http.disconnect", "ended"]
    assert taker.taken == [Head(200, "")]
    assert isinstance(reading.exception(), CutShortError)


async def test_an_exception_of_offer_ends_the_reading() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await send(body_part(b"1"))
        await receive()
        await receive()

    def offer(piece: Head | bytes) -> bool:
        if piece == b"1":
            raise ValueError("a bug")
        return True

    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    async with asyncio.timeout(DEADLINE), aclosing(Exchange(app, GET, offer=offer)) as answer:
        with pytest.raises(RuntimeError, match="was not passed on"):
            await anext(answer)

    assert isinstance(logged[0]["exception"], ValueError)
