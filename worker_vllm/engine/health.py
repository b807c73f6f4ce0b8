"""Health probes of a server that the worker did not start. Only they decide whether it is lost.

Calls say nothing about the server's health: a response that is not streamed, or a long prefill,
sends no bytes for minutes. The duration of a call is limited by its job's execution timeout.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
import structlog

from worker_vllm.engine.base import MODELS_PATH

HEALTH_PATH = "/health"
# A server that responds with a lower status is alive, even if it rejects the request.
FAILURE_STATUS_MIN = 500
BUSY_STATUSES = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


@dataclass(frozen=True, slots=True)
class Pace:
    """The schedule of probes. Times are in seconds."""

    every: float = 5.0
    """Pause between the end of a probe and the next one."""
    timeout: float = 30.0
    """Timeout of a probe. A server that is busy with prompts may respond late."""
    limit: int = 3
    """Number of failures in a row after which the server is lost."""


class Health:
    """The health of one server. `failure` is empty until the server is lost, then the reason."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, authorization: str, pace: Pace
    ) -> None:
        self._session = session
        self._url = url
        self._pace = pace
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
                self.failure = (
                    f"the upstream server failed {failures} health probes in a row, "
                    f"the last with: {fault}"
                )
                structlog.get_logger().error(
                    "upstream.gone", url=self._url, probes=failures, fault=fault
                )
                return

    async def fault(self) -> str:
        """Probe once; return the fault, or an empty string if the server responds.

        Clients may read the fault, so it does not contain an address.
        """
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
        return self._failed(f"HTTP {status}", "") if status >= FAILURE_STATUS_MIN else ""

    async def status(self, path: str) -> int:
        """Return the status of a GET. Raises `TimeoutError`, `aiohttp.ClientError` or `OSError`."""
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
    """Return True if this status of `/health` means a missing route, or one with other rights."""
    if status in BUSY_STATUSES:
        return False
    is_redirect_or_refusal = HTTPStatus.MULTIPLE_CHOICES <= status < FAILURE_STATUS_MIN
    return is_redirect_or_refusal or status == HTTPStatus.NOT_IMPLEMENTED
