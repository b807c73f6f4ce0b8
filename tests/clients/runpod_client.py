"""Runs Runpod's Python client in its own process: makes the calls of a scenario, prints results.

The first argument is the scenario, RUNPOD_ENDPOINT_BASE_URL the base URL; the inputs are read as
JSON from standard input.
"""

import asyncio
import json
import sys
from typing import Any

import runpod
from runpod import AsyncioEndpoint, Endpoint
from runpod.http_client import AsyncClientSession

runpod.api_key = "one"


def sync(inputs: dict[str, Any]) -> dict[str, Any]:
    """Make every call of the synchronous client."""
    endpoint = Endpoint("default")
    result: dict[str, Any] = {"health": endpoint.health()}
    result["run_sync"] = endpoint.run_sync({"input": inputs["plain"]}, timeout=30)
    result["run_sync_failing"] = endpoint.run_sync({"input": inputs["bad"]}, timeout=30)
    job = endpoint.run(inputs["plain"])
    result["output"] = job.output(timeout=30)
    result["status"] = job.status()
    result["stream"] = list(
        endpoint.run({"input": inputs["stream"], "policy": {"ttl": 60_000}}).stream()
    )
    failing = endpoint.run(inputs["bad"])
    result["failing_output"] = failing.output(timeout=30)
    result["failing"] = failing.status()
    long = endpoint.run(inputs["long"])
    result["cancel"] = long.cancel()["status"]
    result["purge"] = endpoint.purge_queue()
    try:
        Endpoint("nowhere").run(inputs["plain"])
    except Exception as error:  # noqa: BLE001 - the exception is the result
        result["nowhere"] = f"{type(error).__name__}: {error}"
    try:
        Endpoint("default", api_key="wrong").run(inputs["plain"])
    except Exception as error:  # noqa: BLE001 - the exception is the result
        result["wrong"] = f"{type(error).__name__}: {error}"
    return result


async def asynchronous(inputs: dict[str, Any]) -> dict[str, Any]:
    """Make every call of the asyncio client."""
    result: dict[str, Any] = {}
    async with AsyncClientSession() as session:
        endpoint = AsyncioEndpoint("default", session, api_key="one")
        result["health"] = await endpoint.health()
        job = await endpoint.run(inputs["plain"])
        result["output"] = await job.output(timeout=30)
        result["status"] = await job.status()
        streaming = await endpoint.run(inputs["stream"])
        result["stream"] = [piece async for piece in streaming.stream()]
        long = await endpoint.run(inputs["long"])
        result["cancel"] = (await long.cancel())["status"]
        result["purge"] = await endpoint.purge_queue()
    return result


async def cancelled(inputs: dict[str, Any]) -> dict[str, Any]:
    """Stream a cancelled job: the client would poll without end, the proxy's 404 ends it."""
    endpoint = Endpoint("default")
    job = endpoint.run(inputs["long"])
    job.cancel()
    try:
        pieces = list(job.stream())
    except Exception as error:  # noqa: BLE001 - the exception is the result
        return {"ended": f"{type(error).__name__}: {error}"}
    return {"pieces": len(pieces)}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    match sys.argv[1]:
        case "sync":
            found = sync(given)
        case "asyncio":
            found = asyncio.run(asynchronous(given))
        case _:
            found = asyncio.run(cancelled(given))
    print("RESULT", json.dumps(found))
