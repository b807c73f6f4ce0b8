"""A worker keeps its runs and dials again, no matter what answers in place of the proxy."""

import asyncio

import pytest
import uvloop
from harness.network.misbehaving import BEHAVIOURS, Behaviour, misbehaving

from proxy.wire.frames import Chunk, End, Hello, Hold
from tests.unit.worker.support import AppEngine, chat, fake_proxy, until, working
from worker_vllm.asgi import Receive, Scope, Send
from worker_vllm.channel.connection import ChannelTimeouts
from worker_vllm.channel.dial import DialRefusedError, Handshake, Link, dial

OPEN_SECONDS = 0.2
TIMEOUTS = ChannelTimeouts(0.02, open=OPEN_SECONDS)


AT_FIRST = (
    "closes at once",
    "302 to a page",
    "307 to no address",
    "308 to two addresses",
    "503",
    "closes with a code",
)


class Halves:
    """An app whose response has two events. The second one waits for `may_end`."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # A GET asks for the list of models.
        if scope["method"] == "GET":
            await send({"type": "http.response.body", "body": b'{"data": []}'})
            return
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_worker_keeps_its_runs_and_dials_until_the_proxy_is_back(name: str) -> None:
    # The worker uses uvloop, whose exceptions differ from those of asyncio's loop.
    uvloop.run(_keeps_its_runs(BEHAVIOURS[name]))


async def _keeps_its_runs(behaviour: Behaviour) -> None:
    app = Halves()
    async with fake_proxy() as proxy:
        with misbehaving(proxy.url) as (front, place):
            async with working(
                AppEngine(app), f"ws://{place}/v2/default/worker", timeouts=TIMEOUTS
            ) as worker:
                line = await proxy.next_line()
                await line.send_job("j", chat())
                await line.wait_for(Chunk, "j")
                front.break_with(behaviour)
                await until(lambda: front.tries > 1)
                assert not worker.running.done()
                front.behaviour = None
                again = await proxy.next_line()
                assert (await again.wait_for(Hello)).holds == [Hold("j", 1, sent=2)]
                app.may_end.set()
                assert (await again.wait_for(End, "j")).ending == "completed"

    assert again.text("j") == b"data: 2\n\n"


@pytest.mark.parametrize("name", AT_FIRST)
def test_a_first_connection_that_fails_is_retried(name: str) -> None:
    """Before the proxy has been reached for the first time, only a refusal is final."""
    uvloop.run(_connects_in_the_end(BEHAVIOURS[name]))


async def _connects_in_the_end(behaviour: Behaviour) -> None:
    async with fake_proxy() as proxy:
        with misbehaving(proxy.url) as (front, place):
            front.behaviour = behaviour
            async with working(
                AppEngine(Halves()), f"ws://{place}/v2/default/worker", timeouts=TIMEOUTS
            ) as worker:
                await until(lambda: front.tries > 1)
                assert not worker.running.done()
                front.behaviour = None
                await proxy.next_line()


def test_failures_of_tls_of_name_resolution_and_of_tcp_are_retried() -> None:
    uvloop.run(_are_retried())


async def _are_retried() -> None:
    async with fake_proxy() as proxy:
        tls = proxy.url.replace("ws:", "wss:")
        for url in (tls, "ws://127.0.0.1:1/", "ws://name.invalid/", f"ws://{'a' * 64}.invalid/"):
            assert (
                await dial(Link(url, "token", "w"), asyncio.Event(), Handshake, OPEN_SECONDS)
                is None
            )


@pytest.mark.parametrize("url", ["ws://127.0.0.1:99999/", "http://127.0.0.1/", "ws:///worker"])
async def test_an_invalid_address_is_final(url: str) -> None:
    with pytest.raises(DialRefusedError, match="WORKER_CONNECT"):
        await dial(Link(url, "token", "w"), asyncio.Event(), Handshake, OPEN_SECONDS)
