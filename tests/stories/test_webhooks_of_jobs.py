"""Webhooks from the run call to the receiver, through a whole proxy."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from harness.data.faulty_store import Fault, FaultyStore
from harness.network.webhook_receiver import Receiver, receiver, trap
from harness.proxy.command import command
from harness.proxy.faulty_proxy import faulty
from harness.proxy.server import Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.process import worker
from structlog.testing import capture_logs

from proxy.settings import Settings
from proxy.store.errors import StoreBusyError
from proxy.system import SystemClock


@pytest_asyncio.fixture
async def hook() -> AsyncIterator[Receiver]:
    """Run a receiver."""
    async with receiver() as running:
        yield running


@pytest_asyncio.fixture
async def open_proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    """Run a proxy that may send webhooks to this machine."""
    async with serving(webhook_allow=["127.0.0.1"], data_dir=tmp_path) as running:
        yield running


async def test_a_webhook_has_the_same_content_as_the_status(
    open_proxy: Proxy, hook: Receiver
) -> None:
    async with worker(open_proxy):
        order = {
            "input": {"openai_route": "/v1/chat/completions", "openai_input": chat("hi")},
            "webhook": hook.url,
        }
        async with open_proxy.http.post("/v2/default/run", json=order) as response:
            job = (await response.json())["id"]
        received = await hook.next()
        async with open_proxy.http.get(f"/v2/default/status/{job}") as response:
            status = await response.json()
    assert json.loads(received.body) == status | {"input": order["input"], "webhook": hook.url}
    assert status["status"] == "COMPLETED"
    assert {"delayTime", "executionTime", "id", "output", "retries", "workerId"} <= set(status)
    secret = open_proxy.parts.settings.signing_secret()
    openai.OpenAI(api_key="none").webhooks.verify_signature(
        received.body, received.headers, secret=secret
    )


async def test_a_webhook_is_not_sent_again_because_the_store_fails(
    tmp_path: Path, hook: Receiver
) -> None:
    store = FaultyStore()
    allowed = {"webhook_allow": ["127.0.0.1"], "data_dir": tmp_path}
    async with faulty(store, **allowed) as broken:
        store.arm(Fault(lambda: StoreBusyError("locked"), times=3), 0, "tried")
        job = await broken.queue.run(1, webhook=hook.url)
        assert (await broken.queue.call("POST", f"cancel/{job}")).status == 200
        await hook.next()
        await until(lambda: store.calls.count("tried") == 4, what="it is recorded")
        assert not await store.deliveries(SystemClock().now(), 1)
        assert hook.received.empty()


async def test_the_webhook_of_a_cancelled_job_has_its_unchanged_input(
    open_proxy: Proxy, hook: Receiver
) -> None:
    body = (
        b'{"webhook": "%b", "input": {"n": 1.0e5,  "big": 12345678901234567890123}}'
        % hook.url.encode()
    )
    async with open_proxy.http.post(
        "/v2/default/run", data=body, headers={"content-type": "application/json"}
    ) as answer:
        job = (await answer.json())["id"]
    async with open_proxy.http.post(f"/v2/default/cancel/{job}") as answer:
        assert answer.status == 200
    received = await hook.next()
    assert b'{"n": 1.0e5,  "big": 12345678901234567890123}' in received.body
    assert json.loads(received.body)["status"] == "CANCELLED"


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest/", "http://localhost:8000/", "ftp://example.com", "x\n"]
)
@pytest.mark.parametrize("operation", ["run", "runsync"])
async def test_an_invalid_webhook_is_rejected_at_once(
    open_proxy: Proxy, operation: str, url: str
) -> None:
    async with open_proxy.http.post(
        f"/v2/default/{operation}", json={"input": 1, "webhook": url}
    ) as response:
        assert response.status == 400
        assert (await response.json())["error"].startswith("`webhook`: ")


async def test_a_private_receiver_is_rejected_unless_it_is_allowed() -> None:
    async with trap() as private, serving() as proxy:
        for host in ("127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"):
            order = {"input": 1, "webhook": f"http://{host}:{private.port}/"}
            async with proxy.http.post("/v2/default/run", json=order) as response:
                assert response.status == 400
    assert private.connections == 0


async def test_the_secrets_of_a_receiver_are_never_logged(
    open_proxy: Proxy, hook: Receiver
) -> None:
    with capture_logs() as logs:
        order = {"input": 1, "webhook": hook.url}
        async with open_proxy.http.post("/v2/default/run", json=order) as response:
            job = (await response.json())["id"]
        async with open_proxy.http.post(f"/v2/default/cancel/{job}") as response:
            assert response.status == 200
        await hook.next()
    assert "hush" not in str(logs)


async def test_the_secret_can_be_printed(tmp_path: Path) -> None:
    async with command("webhook-secret", "--data-dir", str(tmp_path)) as shown:
        assert await shown.process.wait() == 0
    assert shown.text == Settings(data_dir=tmp_path).signing_secret()


async def test_an_invalid_allowed_receiver_is_refused_at_startup(tmp_path: Path) -> None:
    async with command(
        "proxy", "--data-dir", str(tmp_path), "--webhook-allow", "10.0.0.1/8"
    ) as proxy:
        assert await proxy.process.wait() == 2
    assert "--webhook-allow (PROXY_WEBHOOK_ALLOW)" in proxy.text
