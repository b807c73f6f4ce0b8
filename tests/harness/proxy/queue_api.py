"""The queue API over a real socket, as a client without an SDK uses it."""

import json
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from harness.proxy.server import Proxy

JSON = {"Content-Type": "application/json"}
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


@dataclass(frozen=True)
class Answer:
    """A response: status, headers and JSON body."""

    status: int
    headers: dict[str, str]
    body: Any

    def __getitem__(self, name: str) -> Any:
        return self.body[name]


@dataclass(frozen=True)
class QueueClient:
    """A client of one endpoint, with or without an API key."""

    proxy: Proxy
    key: str = ""
    endpoint: str = "default"

    async def call(self, method: str, operation: str, **more: Any) -> Answer:
        """Send any request below the endpoint."""
        headers = more.pop("headers", {}) | ({"Authorization": self.key} if self.key else {})
        url = f"/v2/{self.endpoint}/{operation}"
        async with self.proxy.http.request(method, url, headers=headers, **more) as response:
            assert response.content_type == "application/json", await response.text()
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, found, await response.json())

    async def run(self, value: Any, **options: Any) -> str:
        """Submit a job; return its id."""
        answer = await self.call("POST", "run", **body({"input": value} | options))
        assert answer.status == 200, answer
        job: str = answer["id"]
        return job

    async def status(self, job: str, query: str = "") -> Answer:
        return await self.call("GET", f"status/{job}{query}")

    async def end(self, job: str) -> Answer:
        """Wait for the job to end; return it."""
        while (answer := await self.call("GET", f"status-sync/{job}?wait=20000"))[
            "status"
        ] not in FINAL:
            pass
        return answer

    async def stream(self, job: str, query: str = "") -> Answer:
        return await self.call("GET", f"stream/{job}{query}")


def body(value: Any) -> dict[str, Any]:
    """Return the body of a request, whatever its size."""
    return {"data": BytesIO(json.dumps(value).encode()), "headers": JSON}


def prompt(text: str = "hello", *, stream: bool = False, **params: Any) -> dict[str, Any]:
    """Return a native input for the scripted engine: three tokens by default."""
    return {"prompt": text, "sampling_params": {"max_tokens": 3} | params, "stream": stream}


def long(text: str = "long") -> dict[str, Any]:
    """Return an input that runs until it is stopped."""
    return prompt(text, stream=True, max_tokens=100_000, seed=20_000)


def said(elements: list[dict[str, Any]]) -> str:
    """Return the text of native elements."""
    return "".join(element["output"]["text"][0] for element in elements)
