"""Health probes of a server that the worker did not start. They alone decide whether it is lost.

A call says nothing about the server's health: an answer that is not streamed, or a long prefill, sends no byte for
minutes. What a call may take is bounded by its job's execution timeout.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
import structlog

from worker_vllm.engine.base import MODELS_PATH

HEALTH_PATH = "/health"
FAILED_FROM = (
    500  # a server that answers with a lower status is alive, whatever it thinks of the request
)
BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


@dataclass(frozen=True, slots=True)
class Pace:
    """When to probe, and what to make of it."""

    every: float = 5.0  # seconds between the end of a probe and the next one
    timeout: float = 30.0  # a server that is busy with prompts may answer late
    limit: int = 3  # failures in a row, then the server is lost


class Health:
    """The health of one server. `failure` is empty until the server is lost, and then says why."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, authorization: str, pace: Pace
    ) -> None:
        self._session, self._url, self._pace = session, url, pace
        self._headers = {"authorization": authorization} if authorization else {}
        self._path = HEALTH_PATH
        self.failure = ""

    async def watch(self) -> None:
        """Probe until the server is lost."""
        failures = 0
        while True:
            await asyncio.sleep(self._pace.every)
            fault = await self.fault()
            failures = failures + 1 if fault else 0
            if failures >= self._pace.limit:
                self.failure = f"the upstream server failed {failures} health probes in a row, the last with: {fault}"
                structlog.get_logger().error(
                    "upstream.gone", url=self._url, probes=failures, fault=fault
                )
                return

    async def fault(self) -> str:
        """Probe once. Returns what is wrong, without an address, for clients may read it; empty if it answers."""
        try:
            status = await self.status(self._path)
            if self._path == HEALTH_PATH and _is_missing(status):
                self._path = MODELS_PATH
                status = await self.status(self._path)
        except TimeoutError:
            return self._failed("timeout", f"no answer within {self._pace.timeout:g} s")
        except aiohttp.ClientConnectorError as error:
            return self._failed("no connection", str(error))
        except (aiohttp.ClientError, OSError) as error:
            return self._failed("connection lost", repr(error))
        return self._failed(f"HTTP {status}", "") if status >= FAILED_FROM else ""

    async def status(self, path: str) -> int:
        """The status that the server answers to a GET; raises what aiohttp raises."""
        timeout = aiohttp.ClientTimeout(total=self._pace.timeout)
        url = self._url + path
        async with self._session.get(
            url, headers=self._headers, timeout=timeout, allow_redirects=False
        ) as response:
            return response.status

    def _failed(self, fault: str, error: str) -> str:
        structlog.get_logger().warning(
            "upstream.probe_failed", url=self._url + self._path, fault=fault, error=error
        )
        return fault


def _is_missing(status: int) -> bool:
    """Whether a server that answers `/health` so has no such route, or keeps it for others."""
    if status in BUSY:
        return False
    return (
        HTTPStatus.MULTIPLE_CHOICES <= status < FAILED_FROM or status == HTTPStatus.NOT_IMPLEMENTED
    )
