"""Runpod's Python client in a process of its own: it does what its first argument says, and prints what it was told.

Its base URL comes by RUNPOD_ENDPOINT_BASE_URL, the inputs as JSON on standard input.
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
    """Every call of the plain client."""
    endpoint = Endpoint("default")
    told: dict[str, Any] = {"health": endpoint.health()}
    told["run_sync"] = endpoint.run_sync({"input": inputs["plain"]}, timeout=30)
    told["run_sync_failing"] = endpoint.run_sync({"input": inputs["bad"]}, timeout=30)
    job = endpoint.run(inputs["plain"])
    told["output"] = job.output(timeout=30)
    told["status"] = job.status()
    told["stream"] = list(
        endpoint.run({"input": inputs["stream"], "policy": {"ttl": 60_000}}).stream()
    )
    failing = endpoint.run(inputs["bad"])
    told["failing_output"] = failing.output(timeout=30)
    told["failing"] = failing.status()
    long = endpoint.run(inputs["long"])
    told["cancel"] = long.cancel()["status"]
    told["purge"] = endpoint.purge_queue()
    try:
        Endpoint("nowhere").run(inputs["plain"])
    except Exception as error:  # noqa: BLE001 - it is what is told
        told["nowhere"] = f"{type(error).__name__}: {error}"
    try:
        Endpoint("default", api_key="wrong").run(inputs["plain"])
    except Exception as error:  # noqa: BLE001 - it is what is told
        told["wrong"] = f"{type(error).__name__}: {error}"
    return told


async def asynchronous(inputs: dict[str, Any]) -> dict[str, Any]:
    """Every call of the asyncio client."""
    told: dict[str, Any] = {}
    async with AsyncClientSession() as session:
        endpoint = AsyncioEndpoint("default", session, api_key="one")
        told["health"] = await endpoint.health()
        job = await endpoint.run(inputs["plain"])
        told["output"] = await job.output(timeout=30)
        told["status"] = await job.status()
        streaming = await endpoint.run(inputs["stream"])
        told["stream"] = [piece async for piece in streaming.stream()]
        long = await endpoint.run(inputs["long"])
        told["cancel"] = (await long.cancel())["status"]
        told["purge"] = await endpoint.purge_queue()
    return told


async def cancelled(inputs: dict[str, Any]) -> dict[str, Any]:
    """The client that asks for the stream of a cancelled job for ever: the proxy's 404 ends it."""
    endpoint = Endpoint("default")
    job = endpoint.run(inputs["long"])
    job.cancel()
    try:
        pieces = list(job.stream())
    except Exception as error:  # noqa: BLE001 - it is what is told
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
    print("CLIENT_ERRORS", json.dumps(found))
