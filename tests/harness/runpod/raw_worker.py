"""A stock worker without the SDK: the test sends the SDK's requests over plain HTTP."""

import json
from io import BytesIO
from typing import Any, Self

import aiohttp

from harness.proxy.server import Proxy


class Raw:
    """A worker that does nothing by itself."""

    def __init__(self, proxy: Proxy, name: str = "pod-1") -> None:
        self.name, self._url = name, f"{proxy.url}/v2/default"
        self.http = aiohttp.ClientSession(
            headers={"Authorization": proxy.parts.token}, connector=aiohttp.TCPConnector(limit=0)
        )
        self.pings = aiohttp.ClientSession(headers={"Authorization": proxy.parts.token})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        await self.pings.close()

    async def take(self, *, busy: bool = False, batch: int = 1) -> Any:
        """Poll once; return a job, a list of jobs, or None."""
        verb = "job-take" if batch == 1 else "job-take-batch"
        more = "" if batch == 1 else f"&batch_size={batch}"
        url = f"{self._url}/{verb}/{self.name}?gpu=none{more}&job_in_progress={int(busy)}"
        async with self.http.get(url) as response:
            assert response.status in {200, 204}, response.status
            return await response.json() if response.status == 200 else None

    async def next_job(self) -> Any:
        while True:
            if job := await self.take():
                return job

    async def done(self, job: str, body: Any, *, stream: bool = False) -> int:
        url = f"{self._url}/job-done/{self.name}/{job}?gpu=none&isStream={str(stream).lower()}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(url, data=BytesIO(data)) as response:
            return response.status

    async def chunk(self, job: str, value: Any) -> int:
        return await self.chunk_bytes(job, json.dumps({"output": value}).encode())

    async def chunk_bytes(self, job: str, body: bytes) -> int:
        """Send a chunk of output as raw bytes."""
        url = f"{self._url}/job-stream/{self.name}/{job}?gpu=none&isStream=false"
        async with self.http.post(url, data=BytesIO(body)) as response:
            return response.status

    async def stops(self) -> list[str]:
        async with self.http.get(f"{self._url}/job-stop/{self.name}?gpu=none") as response:
            return list((await response.json())["jobsToStop"]) if response.status == 200 else []

    async def ping(self, *jobs: str) -> None:
        query = f"?job_id={','.join(jobs)}" if jobs else ""
        async with self.pings.get(f"{self._url}/ping/{self.name}{query}") as response:
            assert response.status == 200
