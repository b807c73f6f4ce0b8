"""Secrets never appear in any output.

The outputs are logs, responses, webhooks, files of the store and crash traces.
"""

import asyncio
import base64
import json
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import Any

import aiohttp
import pytest
from harness.data.canaries import Canaries
from harness.load.figures import tell
from harness.network.webhook_receiver import ReceivedWebhook, Receiver, receiver
from harness.proxy.command import Command, command
from harness.proxy.queue_api import FINAL, long, prompt
from harness.proxy.server import CHAT, chat
from harness.worker.process import WorkerProcess, environment, worker_process
from pydantic import SecretStr

from proxy.access.encryption import Seal
from proxy.api.queue.request import OrderReader
from proxy.app import compose
from proxy.settings import Settings
from proxy.webhooks.signature import format_secret
from worker_vllm.channel.dial import Link
from worker_vllm.settings import Settings as WorkerSettings

pytestmark = pytest.mark.slow

# Files with mode 0600 whose purpose is to hold a secret.
KEPT = frozenset({"worker-token", "webhook-secret", "seal-key"})


@dataclass
class Snoop:
    """A client that records every response."""

    http: aiohttp.ClientSession
    canaries: Canaries
    calls: int = 0

    async def ask(self, method: str, path: str, key: str = "", **more: Any) -> tuple[int, bytes]:
        """Make one call; return the status and the body."""
        headers = more.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        self.calls += 1
        async with self.http.request(method, path, headers=headers, **more) as response:
            body = b""
            with suppress(aiohttp.ClientError):  # a truncated response counts too
                body = await response.read()
            self.canaries.see(
                f"{method} {path}", f"{response.reason} {response.headers}".encode() + body
            )
            return response.status, body

    async def run(self, key: str, **order: Any) -> str:
        """Submit a job and return its id."""
        status, body = await self.ask("POST", "/v2/default/run", key, json=order)
        assert status == 200, body
        return str(json.loads(body)["id"])

    async def end(self, key: str, job: str) -> dict[str, Any]:
        """Wait for the job to end and return it."""
        while True:
            _, body = await self.ask("GET", f"/v2/default/status-sync/{job}?wait=20000", key)
            found: dict[str, Any] = json.loads(body)
            if found["status"] in FINAL:
                return found


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


def without_own_url(received: ReceivedWebhook, url: str) -> bytes:
    """Return the content of a webhook without the URL of its receiver."""
    return received.body.replace(json.dumps(url).encode(), b"") + str(received.headers).encode()


@asynccontextmanager
async def proxy_with(
    canaries: Canaries, folder: Path, **more: str
) -> AsyncIterator[tuple[Command, str]]:
    """Start a proxy with every secret set and debug logging, and record its output."""
    variables = {
        "PROXY_API_KEY": f"alice={canaries.new('key-alice')} bob={canaries.new('key-bob')}",
        "PROXY_WORKER_TOKEN": canaries.new("worker-token"),
        "PROXY_WEBHOOK_SECRET": canaries.add(
            "webhook-secret", format_secret(b"canary: 32 bytes for webhooks...")
        ),
        "PROXY_WEBHOOK_ALLOW": "127.0.0.1",
        "PROXY_LOG_LEVEL": "debug",
        "PROXY_LEASE": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    async with command(
        "proxy", "--port", "0", "--data-dir", str(folder), **variables | more
    ) as running:
        url = (await running.says(r"listens on (http://\S+)\.")).group(1)
        canaries.add("seal-key", (folder / "seal-key").read_text().strip())
        yield running, url
    canaries.see("the proxy's output", running.text)


@asynccontextmanager
async def worker_with(canaries: Canaries, url: str, **more: Any) -> AsyncIterator[WorkerProcess]:
    """Start a worker with additional secrets in its environment, and record its output."""
    own = {
        name: canaries.secrets.get(name) or canaries.new(name)
        for name in ("HF_TOKEN", "VLLM_API_KEY")
    }
    variables = {
        "connect": url,
        "token": canaries.secrets["worker-token"],
        "id": "w-1",
        "upstream_key": own["VLLM_API_KEY"],
    }
    async with worker_process(
        variables=environment(**variables | {"environment": own} | more)
    ) as running:
        yield running
    canaries.see("a worker's output", "\n".join(running.lines))


def orders(canaries: Canaries, hook: str) -> dict[str, Any]:
    """Return the secret fields of every job."""
    names = ("accessId", "accessSecret", "bucketName", "endpointUrl", "unknown")
    return {"s3Config": {name: canaries.new(f"s3-{name}") for name in names}, "webhook": hook}


def bad_webhooks(canaries: Canaries) -> Iterator[str]:
    """Yield URLs that are rejected, each with a secret in it."""
    secret = canaries.new("bad-webhook")
    yield from (
        f"http://169.254.169.254/?token={secret}",
        f"https://user:{secret}@example.com/",
        f"ftp://{secret}/x",
    )
    yield from (
        f"http://example.com:22/{secret}",
        f"http://{secret}:x@127.0.0.1/",
        secret,
        f"http://a\\{secret}",
    )


def refused(
    canaries: Canaries, secrets: Mapping[str, Any], key: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield invalid requests of every kind: the method, the path and the other arguments."""
    wrong = canaries.new("wrong-key")
    for path in (
        "/v2/default/run",
        CHAT,
        "/v2/default/status/x",
        "/v2/none/openai/v1/completions",
        "/nothing",
    ):
        for header in (
            wrong,
            f"Bearer {wrong}",
            f"Basic {wrong}",
            f"Bearer {canaries.secrets['worker-token']}",
        ):
            yield "POST", path, {"headers": {"Authorization": header}, "json": {"input": 1}}
    for verb in ("job-take/w", "job-stop/w", "ping/w"):
        for header in (wrong, key):
            yield "GET", f"/v2/default/{verb}", {"headers": {"Authorization": header}}
    yield "GET", "/v2/default/worker", {"headers": {"Authorization": wrong}}
    mine = {"headers": {"Authorization": key}}
    for operation in ("run", "runsync"):
        for webhook in bad_webhooks(canaries):
            yield (
                "POST",
                f"/v2/default/{operation}",
                mine | {"json": {"input": 1, **secrets, "webhook": webhook}},
            )
        for odd in (
            {"s3Config": list(secrets["s3Config"].values())},
            {"s3Config": str(secrets["s3Config"])},
        ):
            yield "POST", f"/v2/default/{operation}", mine | {"json": {"input": 1, **odd}}
        for policy in ({"ttl": 1}, {"executionTimeout": "x"}, []):
            yield (
                "POST",
                f"/v2/default/{operation}",
                mine | {"json": {"input": 1, **secrets, "policy": policy}},
            )
        yield "POST", f"/v2/default/{operation}", mine | {"json": secrets}
        yield (
            "POST",
            f"/v2/default/{operation}",
            mine | {"data": json.dumps({"input": 1, **secrets})[:-1] + ",}"},
        )
        whole = {"Authorization": key, "Content-Type": "application/json"}
        yield (
            "POST",
            f"/v2/default/{operation}",
            {"headers": whole, "data": json.dumps(secrets)[:-2]},
        )
        yield (
            "POST",
            f"/v2/default/{operation}",
            {"headers": whole, "data": b"\xff" + json.dumps(secrets).encode()},
        )
        yield "POST", f"/v2/none/{operation}", mine | {"json": {"input": 1, **secrets}}
    for path in (
        "status/x?ttl=x",
        "stream/x",
        "requests?limit=x",
        "health",
        "cancel/x",
        "retry/x",
        "purge-queue",
        "run",
    ):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            yield method, f"/v2/default/{path}", mine
    for path in (
        "/",
        "/health",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/metrics",
        "/v1/models",
        "/v1/models/x",
    ):
        yield "GET", path, mine


async def work(snoop: Snoop, key: str, secrets: Mapping[str, Any], hook: Receiver) -> None:
    """Make jobs and calls that end in every way that a worker can end them."""
    for fault in ("", "status:500", "error_event:1", "cut:1"):
        for stream in (False, True):
            body = chat("hi", fault=fault, stream=stream)
            await snoop.ask("POST", CHAT, key, json=body)
            value = {"openai_route": CHAT, "openai_input": body}
            await snoop.end(key, await snoop.run(key, input=value, **secrets))
    await snoop.ask("POST", "/v2/default/runsync", key, json={"input": prompt(), **secrets})
    await snoop.ask("POST", "/v2/default/runsync", key, json={"input": {"prompt": 7}, **secrets})
    job = await snoop.run(key, input=long(), **secrets)
    for operation in ("status", "stream"):
        await snoop.ask("GET", f"/v2/default/{operation}/{job}?wait=1000", key)
    await snoop.ask("GET", f"/v2/default/stream/{job}?wait=1000", canary_of(snoop, "key-bob"))
    await snoop.ask("POST", f"/v2/default/cancel/{job}", key)
    await snoop.ask("GET", "/v2/default/requests", key)
    hook.statuses = [500, 302]
    await snoop.end(key, await snoop.run(key, input=prompt(), **secrets))


def canary_of(snoop: Snoop, name: str) -> str:
    return snoop.canaries.secrets[name]


@pytest.mark.timeout(90)
async def test_the_proxy_and_its_workers_write_no_secret(
    canaries: Canaries, tmp_path: Path
) -> None:
    async with receiver() as hook:
        url = (
            f"http://127.0.0.1:{hook.port}/hook/{canaries.new('webhook-path')}"
            f"?token={canaries.new('webhook-query')}"
        )
        async with (
            proxy_with(canaries, tmp_path) as (running, base),
            aiohttp.ClientSession(base) as http,
        ):
            snoop, key = Snoop(http, canaries), canaries.secrets["key-alice"]
            secrets = orders(canaries, url)
            calls = refused(canaries, secrets, key)
            answers = await asyncio.gather(
                *(snoop.ask(method, path, **more) for method, path, more in calls)
            )
            assert {400, 401, 404, 405} <= {status for status, _ in answers}
            async with worker_with(
                canaries, base, token=canaries.new("wrong-token"), id="w-2"
            ) as intruder:
                await asyncio.wait_for(intruder.process.wait(), 20)
            async with worker_with(canaries, base):
                await work(snoop, key, secrets, hook)
                dying = await snoop.run(
                    key,
                    input={"openai_route": CHAT, "openai_input": chat(fault="die:1")},
                    **secrets,
                )
                # The job is given up after the third worker that it kills.
                for _ in range(2):
                    await snoop.ask("GET", f"/v2/default/status-sync/{dying}?wait=1000", key)
            waiting = await snoop.run(key, input=1, **secrets)
            await stock_worker_of(snoop, waiting)
            canaries.see_folder(tmp_path, KEPT)  # the store as after a crash
            assert (tmp_path / "jobs.db-wal").exists()
            await running.stop(signal.SIGABRT)
        assert "Current thread" in running.text  # the crash trace was written
        canaries.see_folder(tmp_path, KEPT)
        while not hook.received.empty():
            canaries.see("a webhook", without_own_url(hook.received.get_nowait(), url))
    assert "delivery.failed" in running.text
    assert "run.lost" in running.text
    found = canaries.leaks()
    tell("bytes searched for secrets", canaries.bytes_seen, "", "bytes")
    tell("secrets found in them", len(found), "0")
    assert found == []


async def stock_worker_of(snoop: Snoop, job: str) -> None:
    """Take the job as a Runpod worker, which receives the bucket, and send invalid JSON."""
    headers = {"Authorization": canary_of(snoop, "worker-token")}
    for _ in range(3):
        async with snoop.http.get(
            "/v2/default/job-take/pod-1?gpu=none", headers=headers
        ) as response:
            taken = await response.json() if response.status == 200 else {}
        if taken.get("id") == job:
            break
    assert taken["s3Config"]["accessSecret"] == canary_of(snoop, "s3-accessSecret")
    for body in (b"{", b'{"output": }', b'{"error": 1}'):
        await snoop.ask(
            "POST", f"/v2/default/job-done/pod-1/{job}?gpu=none", headers=headers, data=body
        )
    await snoop.ask("GET", "/v2/default/ping/pod-1?status=unhealthy&reason=ill", headers=headers)


async def test_the_check_detects_leaks(canaries: Canaries, tmp_path: Path) -> None:
    """Each encoding of a secret is detected; otherwise the other tests would prove nothing."""
    secret = canaries.new("key")
    (tmp_path / "file").write_text(f"a={secret}")
    canaries.see_folder(tmp_path)
    assert canaries.leaks() == ["key in file"]
    for lead in range(4):
        canaries = Canaries({"key": secret})
        canaries.see(
            "encoded, not sealed", base64.b64encode(b"y" * lead + secret.encode() + b"yyy")
        )
        assert canaries.leaks()


async def test_up_and_its_workers_write_no_secret(canaries: Canaries, tmp_path: Path) -> None:
    variables = {
        "PROXY_API_KEY": canaries.new("key"),
        "PROXY_WORKER_TOKEN": canaries.new("worker-token"),
        "HF_TOKEN": canaries.new("hf-token"),
        "WORKER_ENGINE": "scripted",
        "PROXY_LOG_LEVEL": "debug",
    }
    async with command("up", "--port", "0", "--data-dir", str(tmp_path), **variables) as up:
        url = (await up.says(r"base URL\s+(http://\S+)/v1")).group(1)
        async with aiohttp.ClientSession(url) as http:
            await Snoop(http, canaries).ask(
                "POST", CHAT, variables["PROXY_API_KEY"], json=chat("hi")
            )
        tokens = (variables["PROXY_WORKER_TOKEN"], canaries.new("wrong"))
        doctors = await asyncio.gather(
            *(
                printed("doctor", "--connect", url, **variables | {"WORKER_TOKEN": one})
                for one in tokens
            )
        )
    canaries.add("seal-key", (tmp_path / "seal-key").read_text().strip())
    canaries.see("up", up.text)
    canaries.see("doctor", "".join(doctors))
    canaries.see_folder(tmp_path, KEPT)
    assert (tmp_path / "logs" / "worker-1.log").stat().st_size > 0
    assert canaries.leaks() == []


async def printed(*arguments: str, **variables: str) -> str:
    """Return the output of a command that ends by itself with an error (or of `doctor`)."""
    async with command(*arguments, **variables) as running:
        status = await asyncio.wait_for(running.process.wait(), 30)
    assert status != 0 or "doctor" in arguments
    return running.text


async def test_a_failed_start_writes_no_secret(canaries: Canaries, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    key, token, secret = (canaries.new(name) for name in ("key", "token", "webhook-secret"))
    given = ("proxy", "--port", "0", "--api-key", key, "--worker-token", token)
    failures = await asyncio.gather(
        printed(*given, "--endpoint", "a b"),
        printed(*given, "--data-dir", str(tmp_path / "file")),
        printed("proxy", "--port", "0", "--data-dir", str(tmp_path), PROXY_WEBHOOK_SECRET=secret),
    )
    assert all(failures)
    canaries.see("starts that failed", "".join(failures))
    assert canaries.leaks() == []


async def test_no_object_contains_a_secret_in_its_representation(
    canaries: Canaries, tmp_path: Path
) -> None:
    token, key = canaries.new("token"), canaries.new("key")
    settings = Settings(
        data_dir=tmp_path, api_key=[SecretStr(f"alice={key}")], worker_token=SecretStr(token)
    )
    parts = compose(settings)
    canaries.add("seal-key", settings.seal_key())
    canaries.add("webhook-secret", settings.signing_secret())
    secrets = orders(
        canaries, f"https://example.com/{canaries.new('path')}?t={canaries.new('query')}"
    )
    reader = OrderReader(str, Seal(settings.seal_key(), token_bytes))
    order = await reader.read(json.dumps({"input": 1, **secrets}).encode())
    worker = WorkerSettings(
        token=SecretStr(token), connect="http://127.0.0.1", upstream_key=SecretStr(key)
    )
    for value in (
        settings,
        parts,
        order,
        settings.keys(token),
        worker,
        Link("ws://127.0.0.1", token, "w"),
    ):
        canaries.see(type(value).__name__, f"{value!r} {value!s}")
    canaries.see("settings as JSON", settings.model_dump_json() + worker.model_dump_json())
    assert canaries.leaks() == []
