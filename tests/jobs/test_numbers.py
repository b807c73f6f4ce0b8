"""Numbers that clients send: an invalid query parameter is rejected, an invalid header ignored."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness.proxy.queue_api import QueueClient, body
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from yarl import URL

from proxy.access.limits import LIMITS
from proxy.api.openapi.document import document
from proxy.api.queue.app import OPERATIONS
from proxy.api.queue.request import (
    MAX_EXECUTION_TIMEOUT_MS,
    MAX_TTL_MS,
    MIN_EXECUTION_TIMEOUT_MS,
    MIN_TTL_MS,
)

HUGE = "9" * 400
# As they are written in a URL.
NOT_NUMBERS = (
    *("nan", "inf", "-inf", "Infinity", "1e400", "1e3", "-1", "-0", "%2B5", "+5", "%205", "5%20"),
    *("1_0", "0x10", "%D9%A3", "%EF%BC%95", "%C2%B2", "5%00", "1,000", "soon", "true", "null"),
    "%0A5",
)
WRONG = {
    ("status", "ttl"): (*NOT_NUMBERS, "1.5", "0", "999", "604800001", HUGE),
    ("stream", "after"): (*NOT_NUMBERS, "1.5", str(2**53 + 1), HUGE),
    ("stream", "wait"): (*NOT_NUMBERS, "1.x", ".5"),
    ("status-sync", "wait"): (*NOT_NUMBERS, "1.x", ".5"),
    ("runsync", "wait"): (*NOT_NUMBERS, "1.x", "1500.5", "999", "300001", HUGE),
    ("requests", "limit"): (*NOT_NUMBERS, "1.5", "0", "1001", HUGE),
    ("requests", "before"): (*NOT_NUMBERS, "1.5", "0", str(2**53 + 1), HUGE),
}
RIGHT = {
    ("status", "ttl"): ("604800000", "0000000000000000000000600000", ""),
    ("stream", "after"): ("0", str(2**53), "000000000000000000000000000000007", ""),
    ("stream", "wait"): ("0", "1", "1500.5", HUGE, ""),
    ("status-sync", "wait"): ("0", "1", "1500.5", HUGE, ""),
    ("requests", "limit"): ("1", "1000", ""),
    ("requests", "before"): ("1", str(2**53), ""),
}
MILLISECONDS = {"ttl", "wait"}
READ_TIMEOUTS = (
    *("nan", "inf", "-inf", "1e306", "1e400", "-1", "0", "1_0", "+5", HUGE, "", "soon", "1e-400"),
    *("\u00b2", "0x10", "600", "600.0", "0.5", "1e+16"),
)
NOT_JSON_NUMBERS = (
    "nan",
    "NaN",
    "inf",
    "Infinity",
    "1_0",
    "+10000",
    "0x10",
    "010000",
    "\u0661",
    "",
)
NOT_MILLISECONDS = ("1e400", "-1", "0", HUGE, "10000.5", '"10000"', "true", "[]", "{}", "1e99")


@pytest_asyncio.fixture(scope="module")
async def unlimited() -> AsyncIterator[Proxy]:
    async with serving(limit=[f"{name}=0" for name in LIMITS]) as proxy:
        yield proxy


@pytest_asyncio.fixture(scope="module")
async def ended(unlimited: Proxy) -> str:
    """The id of a job that has ended."""
    client = QueueClient(unlimited)
    job = await client.run(1)
    await client.call("POST", f"cancel/{job}")
    return job


async def ask(proxy: Proxy, operation: str, job: str, query: str) -> tuple[int, str]:
    path = next(path for path in OPERATIONS if path.split("/")[1] == operation).replace(
        "{job}", job
    )
    url = URL(f"{proxy.url}/v2/default{path}?{query}", encoded=True)
    async with proxy.http.request(
        OPERATIONS[path.replace(job, "{job}")][0], url, **body({"input": 1})
    ) as response:
        return response.status, await response.text()


def test_the_table_has_every_number_of_a_query() -> None:
    described = document("1")
    parameters = described["components"]["parameters"]  # type: ignore[index]
    found = {
        (path.split("/")[3], parameters[ref["$ref"].rpartition("/")[2]]["name"])
        for path, item in described["paths"].items()  # type: ignore[attr-defined]
        for method, operation in item.items()
        if path.startswith("/v2/{endpoint}/") and "/openai/" not in path and method != "parameters"
        for ref in operation["parameters"]
    }
    texts = {"status", "Last-Event-ID", "Idempotency-Key"}
    assert {one for one in found if one[1] not in texts} == set(WRONG)


@pytest.mark.parametrize(("operation", "name"), WRONG)
async def test_an_invalid_number_is_rejected_by_name(
    unlimited: Proxy, ended: str, operation: str, name: str
) -> None:
    for value in WRONG[operation, name]:
        status, text = await ask(unlimited, operation, ended, f"{name}={value}")
        assert status == 400, (value, text)
        if operation == "runsync":
            # The sentence of the public platform.
            assert "wait is invalid; must be between 1000 and 300000" in text
        else:
            assert f"`{name}`" in text
            assert ("milliseconds" in text) == (name in MILLISECONDS)


@pytest.mark.parametrize(("operation", "name"), RIGHT)
async def test_a_number_in_range_is_accepted(
    unlimited: Proxy, ended: str, operation: str, name: str
) -> None:
    for value in RIGHT[operation, name]:
        reads_only = "&after=0" if (operation, name) == ("stream", "wait") else ""
        assert (await ask(unlimited, operation, ended, f"{name}={value}{reads_only}"))[0] == 200, (
            value
        )


@pytest.mark.parametrize("value", ["nan", "-1", "1_0", "+5", HUGE, str(2**53 + 1), "1e3"])
async def test_an_invalid_last_event_id_is_rejected(
    unlimited: Proxy, ended: str, value: str
) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": value}
    assert (
        await QueueClient(unlimited).call("GET", f"stream/{ended}", headers=headers)
    ).status == 400


@pytest.mark.parametrize("field", ["executionTimeout", "ttl"])
async def test_the_times_of_a_policy_are_integers_in_range(unlimited: Proxy, field: str) -> None:
    least, most = {
        "executionTimeout": (MIN_EXECUTION_TIMEOUT_MS, MAX_EXECUTION_TIMEOUT_MS),
        "ttl": (MIN_TTL_MS, MAX_TTL_MS),
    }[field]
    bad = (*NOT_JSON_NUMBERS, *NOT_MILLISECONDS, str(least - 1), str(most + 1))
    for value, status in [
        *((one, 400) for one in bad),
        *((one, 200) for one in (str(least), str(most), "null")),
    ]:
        data = f'{{"input": 1, "policy": {{"{field}": {value}}}}}'.encode()
        headers = {"Content-Type": "application/json"}
        answer = await QueueClient(unlimited).call("POST", "run", data=data, headers=headers)
        assert answer.status == status, (value, answer.body)


async def test_an_invalid_read_timeout_is_ignored(line: Line) -> None:
    for value in READ_TIMEOUTS:
        headers = {"X-Stainless-Read-Timeout": value}
        async with line.proxy.http.post(CHAT, json=chat(max_tokens=1), headers=headers) as response:
            assert response.status == 200, (value, await response.text())


async def test_invalid_headers_of_sdks_cause_no_error(line: Line) -> None:
    """Also headers that the proxy does not read."""
    names = ("Read-Timeout", "Timeout", "Retry-Count", "Max-Retries")
    for value in (HUGE, "1e306", "nan", "-1"):
        headers = {f"X-Stainless-{name}": value for name in names} | {
            "Retry-After": value,
            "Retry-After-Ms": value,
        }
        async with line.proxy.http.post(CHAT, json=chat(max_tokens=1), headers=headers) as response:
            assert response.status == 200
