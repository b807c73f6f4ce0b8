"""Webhooks send no packets to private addresses unless the operator allows them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp
import pytest
import pytest_asyncio
from harness.data import url_tricks
from harness.data.clock import FakeClock
from harness.network.webhook_receiver import Receiver, Trap, receiver, trap

from proxy.webhooks.http_client import GuardedResolver
from proxy.webhooks.lookup import SendTimeouts, system_lookup
from proxy.webhooks.sender import Sender
from proxy.webhooks.url_policy import Allowed

KEY = bytes(32)
PUBLIC = "93.184.216.34"


@dataclass
class Names:
    """The table of a name server; each query of a name takes its next row, finally the last one."""

    rows: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def lookup(self, host: str, _: int) -> Sequence[str]:
        self.asked.append(host)
        rows = self.rows.get(host)
        if rows is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return rows.pop(0) if len(rows) > 1 else rows[0]


async def send(url: str, names: Names, *allowed: str, body: bytes = b"{}") -> str | None:
    """Attempt one delivery; return None if it was acknowledged."""
    sender = Sender(
        KEY,
        Allowed.read(allowed),
        FakeClock(),
        lookup=names.lookup,
        timeouts=SendTimeouts(2.0, 5.0),
    )
    async with sender.closing():
        return await sender.send(url, "a-u1-0", body)


@pytest_asyncio.fixture
async def private() -> AsyncIterator[Trap]:
    """Run a server on loopback that must never be reached."""
    async with trap() as running:
        yield running


@pytest_asyncio.fixture
async def hook() -> AsyncIterator[Receiver]:
    """Run a receiver."""
    async with receiver() as running:
        yield running


async def test_the_trap_would_notice(private: Trap) -> None:
    """Prove that the other tests can fail: a plain client reaches the trap with some URLs."""
    async with aiohttp.ClientSession() as http, AsyncExitStack() as stack:
        for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost"):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await stack.enter_async_context(http.post(f"http://{host}:{private.port}/"))
    assert private.connections == 4


async def test_no_trick_sends_a_packet_or_asks_a_name_server(private: Trap) -> None:
    names = Names()
    for family in url_tricks.FAMILIES:
        for url in set(family(private.port)):
            why = await send(url, names)
            assert why is not None, ascii(url)
            assert why.startswith(("it", "only")), (ascii(url), why)
    assert private.connections == 0
    assert names.asked == []


async def test_a_name_that_leads_to_a_private_address_is_refused(private: Trap) -> None:
    answers = [[text] for text in (*url_tricks.V4, *url_tricks.V6, "fe80::1%1", "127.255.255.254")]
    answers += [[hidden] for text in url_tricks.V4 for hidden in url_tricks.hidden(text)]
    answers += [[PUBLIC, text] for text in url_tricks.V4] + [
        [text, PUBLIC] for text in (*url_tricks.V4, *url_tricks.V6)
    ]
    for answer in answers:
        names = Names({"hook.example": [answer]})
        assert await send(f"http://hook.example:{private.port}/", names) == (
            "its host name resolves to an address that is not public."
        ), answer
    assert private.connections == 0


async def test_a_name_that_changes_its_answer_is_connected_at_the_checked_address(
    private: Trap, hook: Receiver
) -> None:
    """DNS rebinding: one lookup serves the check and the connection."""
    names = Names({"hook.example": [["127.0.0.1"], ["127.0.0.2"]]})
    assert await send(hook.named("hook.example"), names, "127.0.0.1/32") is None
    assert names.asked == ["hook.example"]
    assert (await hook.next()).headers["host"] == f"hook.example:{hook.port}"
    assert "not public" in (await send(hook.named("hook.example"), names, "127.0.0.1/32") or "")
    assert names.asked == ["hook.example"] * 2
    names = Names({"hook.example": [["127.0.0.1"]]})
    assert "not public" in (
        await send(f"http://hook.example:{private.port}/", names, "127.0.0.2/32") or ""
    )
    assert private.connections == 0


async def test_names_of_the_system_are_checked_too(private: Trap) -> None:
    """The name is `localhost` of this machine's own tables, resolved as in production."""
    assert await system_lookup("localhost", private.port)
    resolver = GuardedResolver(Allowed(), system_lookup)
    with pytest.raises(ValueError, match="not public"):
        await resolver.resolve("localhost", private.port)
    assert private.connections == 0


@pytest.mark.parametrize("allowed", ["hook.example", "127.0.0.0/8", "127.0.0.1"])
async def test_an_allowed_receiver_receives_the_webhook(hook: Receiver, allowed: str) -> None:
    names = Names({"hook.example": [["127.0.0.1"]]})
    assert await send(hook.named("hook.example"), names, allowed, body=b'{"a": 1}') is None
    received = await hook.next()
    assert received.body == b'{"a": 1}'
    assert received.path == "/hook?token=hush"
    assert received.headers["content-type"] == "application/json"


async def test_a_path_and_a_query_arrive_as_they_were_written(hook: Receiver) -> None:
    path = "/a/../b//c;d?x=%2f%2F&y=a+b&z={}|^`"
    assert await send(f"http://127.0.0.1:{hook.port}{path}#fragment", Names(), "127.0.0.1") is None
    assert (await hook.next()).path == path


async def test_a_redirect_is_not_followed(private: Trap, hook: Receiver) -> None:
    async def elsewhere(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(
            status=307, headers={"location": f"http://127.0.0.1:{private.port}/"}
        )

    hook.answer = elsewhere
    assert await send(hook.url, Names(), "127.0.0.0/8") == "status 307"
    assert private.connections == 0


async def test_proxies_of_the_environment_are_not_used(
    private: Trap, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{private.port}")
    assert await send(hook.url, Names(), "127.0.0.1") is None
    assert private.connections == 0


async def test_tls_requests_the_name_and_not_the_address(private: Trap) -> None:
    names = Names({"hook.example": [["127.0.0.1"]]})
    why = await send(f"https://hook.example:{private.port}/", names, "hook.example")
    assert why is not None
    hello = await asyncio.wait_for(private.heard.get(), 5)
    assert b"hook.example" in hello
    # The first record is a TLS handshake: nothing was sent in plain text.
    assert hello[0] == 22


async def test_a_certificate_must_be_valid(hook: Receiver) -> None:
    """A server without TLS or without a valid certificate receives no part of the body."""
    why = await send(f"https://127.0.0.1:{hook.port}/", Names(), "127.0.0.1")
    assert why is not None
    assert hook.received.empty()
