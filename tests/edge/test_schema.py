"""Thousands of requests generated from `/openapi.json` receive only responses that it describes."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness.load.figures import tell
from harness.proxy.schemathesis_run import CONFORMS, Asking, ask_all
from harness.proxy.server import Proxy, serving
from harness.worker.process import worker

pytestmark = pytest.mark.slow

OPERATIONS = ("run", "runsync", "status", "stream", "cancel", "purge-queue", "openai", "requests")
LIMITS = [f"{name}=0" for name in OPERATIONS]
PUBLIC_PATHS = r"^/(livez|readyz|ping)?$"
# The forms of OpenAI routes without a version, which have the same rows as the other forms.
WITHOUT_VERSION = r"^(.*/openai)?/(?!v1/|v2/|livez|readyz|ping|health|openapi)[a-z]"
SHORT_FORM_REQUESTS = 1_000
LONG_FORM_REQUESTS = 20_000
KEYLESS_REQUESTS = 500
# Statuses of requests for an existing job.
FOUND = (200, 409)
SERVER_ERROR = 500
MINUTES = float(os.environ.get("MINUTES") or 5)


@pytest_asyncio.fixture
async def described() -> AsyncIterator[Proxy]:
    """A proxy with a worker and without rate limits, so that no request is refused temporarily."""
    async with serving(limit=LIMITS) as proxy, worker(proxy, max_concurrency=16):
        yield proxy


async def test_the_description_is_served(described: Proxy) -> None:
    for method in ("GET", "HEAD"):
        async with described.http.request(method, "/openapi.json") as response:
            assert (response.status, response.content_type) == (200, "application/json")
            found = await response.read()
            assert (json.loads(found)["openapi"] if method == "GET" else found) in ("3.1.0", b"")


@pytest.mark.timeout(300)
async def test_a_thousand_generated_requests_get_described_responses(
    described: Proxy, tmp_path: Path
) -> None:
    """All operations of the queue API, the server and the OpenAI API at one of its base paths."""
    skipped = f"/openai/|{WITHOUT_VERSION}"
    options = ("--max-examples", "6", "--exclude-path-regex", skipped)
    found = await _asked(described, tmp_path, *options)
    assert len(found.requests) >= SHORT_FORM_REQUESTS
    followed = [
        one for one in found.requests if one.phase == "stateful" and one.path.endswith("/{job}")
    ]
    met = [one.path for one in followed if one.status in FOUND]
    tell("jobs found by what was linked to them", len(met))
    assert len(met) >= 5, "few of the submitted jobs were requested by id"


@pytest.mark.torture
@pytest.mark.timeout(max(1_200, MINUTES * 240))
async def test_twenty_thousand_generated_requests_get_described_responses(
    described: Proxy, tmp_path: Path
) -> None:
    found = await _asked(described, tmp_path, "--max-examples", str(int(40 * MINUTES)))
    assert len(found.requests) >= LONG_FORM_REQUESTS * min(1.0, MINUTES / 5)


async def _asked(proxy: Proxy, folder: Path, *options: str) -> Asking:
    checks = ("not_a_server_error", *CONFORMS)
    found = await ask_all(f"{proxy.url}/openapi.json", proxy.url, folder, *options, checks=checks)
    failed = sum(one.status >= SERVER_ERROR or not one.status for one in found.requests)
    tell("generated requests", len(found.requests))
    tell("generated requests that met a 5xx", failed, "0")
    tell("generated requests that met what the description lacks", found.failures, "0")
    assert (failed, found.failures, found.code) == (0, 0, 0), found.text
    return found


@pytest.mark.timeout(300)
async def test_without_a_key_every_generated_request_is_401(tmp_path: Path) -> None:
    description = tmp_path / "openapi.json"
    async with serving(api_key=["alice=secret"]) as proxy:
        async with proxy.http.get("/openapi.json", headers={"Authorization": "secret"}) as response:
            description.write_bytes(await response.read())
        phases = "examples,coverage,fuzzing"
        options = ("--mode", "positive", "--max-examples", "1", "--phases", phases)
        found = await ask_all(
            str(description),
            proxy.url,
            tmp_path,
            *options,
            "--exclude-path-regex",
            f"{PUBLIC_PATHS}|{WITHOUT_VERSION}",
        )
    let_in = {(one.method, one.path, one.status) for one in found.requests if one.status != 401}
    tell("generated requests without a key", len(found.requests))
    tell("generated requests without a key that were not 401", len(let_in), "0")
    assert let_in == set()
    assert len(found.requests) >= KEYLESS_REQUESTS
    assert (found.failures, found.code) == (0, 0), found.text
