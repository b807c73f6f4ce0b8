"""The clients of a storm. Each repeats what a kill has interrupted, as real ones do."""

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import openai

from harness.storm.record import FINAL, Asked, Ended

RETRY_SECONDS = 0.2
CALL_SECONDS = 40.0
SDK_CLIENT = Path(__file__).with_name("sdk_client.py")
OK, TOO_MANY, NOT_FOUND, FIRST_SERVER_ERROR = 200, 429, 404, 500
BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)


class Clients:
    """Clients of one proxy, over its own URL or over a cable that is cut at times."""

    def __init__(self, url: str, http: aiohttp.ClientSession, pace: int, webhook: str) -> None:
        self._url = url
        self._http = http
        self._pace = pace
        self._webhook = webhook
        self._openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    async def close(self) -> None:
        """Close the connections of the OpenAI client."""
        await self._openai.close()

    async def send(self, asked: Asked) -> None:
        """Make one request, and record its answer."""
        match asked.kind:
            case "openai":
                await self._openai_stream(asked)
            case "whole":
                await self._openai_whole(asked)
            case "sync":
                await self._poll(asked, await self._submit(asked, "runsync?wait=1000"))
                # The result of such a job is kept for a minute.
                asked.shown = await self.ended(asked)
            case "after":
                await self._submit(asked, "run")
                await self._read_after(asked)
            case "follow":
                await self._submit(asked, "run")
                await self._follow(asked)
            case _:
                await self._poll(asked, await self._submit(asked, "run"))

    async def ended(self, asked: Asked) -> Ended | None:
        """Return a job as it is after the storm, or None if it is unknown."""
        status, body = await self._call("GET", f"{_path(asked)}/status/{asked.job}")
        if status == NOT_FOUND:
            return None
        return Ended(body["status"], text_of(body.get("output")), str(body.get("error", "")))

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request until the proxy answers it."""
        while True:
            try:
                timeout = aiohttp.ClientTimeout(CALL_SECONDS)
                async with self._http.request(
                    method, self._url + path, json=body, timeout=timeout
                ) as response:
                    answer = await response.json()
                    if response.status < FIRST_SERVER_ERROR and response.status != TOO_MANY:
                        return response.status, answer
            except BROKEN:
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _submit(self, asked: Asked, operation: str) -> Any:
        wants_webhook = asked.kind == "status"
        body = {"input": self._input(asked)} | (
            {"webhook": f"{self._webhook}&job={asked.prompt}"} if wants_webhook else {}
        )
        status, answer = await self._call("POST", f"{_path(asked)}/{operation}", body)
        assert status == OK, answer
        asked.job = answer["id"]
        return answer

    def _input(self, asked: Asked) -> dict[str, Any]:
        return {
            "prompt": asked.prompt,
            "sampling_params": {"max_tokens": asked.tokens, "seed": self._pace},
            "stream": asked.kind in ("after", "follow", "stock"),
        }

    async def _poll(self, asked: Asked, answer: Any) -> None:
        while answer["status"] not in FINAL:
            await asyncio.sleep(RETRY_SECONDS)
            status, answer = await self._call("GET", f"{_path(asked)}/status/{asked.job}")
            if status == NOT_FOUND:
                asked.ends.append("404")
                return
        asked.ends.append(answer["status"])
        if answer["status"] == "COMPLETED":
            asked.text = text_of(answer["output"])
            asked.is_whole = True

    async def _read_after(self, asked: Asked) -> None:
        """Read the output in pages, with a cursor that names the attempt."""
        cursor = "0"
        while True:
            path = f"{_path(asked)}/stream/{asked.job}?after={cursor}"
            status, page = await self._call("GET", path)
            if status == NOT_FOUND:
                asked.ends.append("404")
                return
            if page["next"].partition("-")[0] != cursor.partition("-")[0] and cursor != "0":
                # The attempt was lost before any output of it was delivered.
                asked.text = ""
            asked.text += text_of([row["output"] for row in page["stream"]])
            cursor = page["next"]
            if page["status"] in FINAL and not page["stream"]:
                break
        asked.ends.append(page["status"])
        asked.is_whole = page["status"] == "COMPLETED"

    async def _follow(self, asked: Asked) -> None:
        """Read server-sent events; connect again with `Last-Event-ID` when they break."""
        last = ""
        while not asked.ends:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            url = f"{self._url}{_path(asked)}/stream/{asked.job}"
            try:
                timeout = aiohttp.ClientTimeout(CALL_SECONDS * 3)
                async with self._http.get(url, headers=headers, timeout=timeout) as response:
                    if response.status == NOT_FOUND:
                        asked.ends.append("404")
                    if response.status == OK:
                        async for event in events(response.content):
                            last = _take_event(asked, event) or last
            except BROKEN:
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _openai_stream(self, asked: Asked) -> None:
        try:
            async for chunk in await self._openai.chat.completions.create(
                model="scripted",
                messages=[{"role": "user", "content": asked.prompt}],
                max_tokens=asked.tokens,
                seed=self._pace,
                stream=True,
            ):
                for choice in chunk.choices:
                    asked.text += choice.delta.content or ""
                    asked.is_whole = choice.finish_reason is not None
            asked.ends.append("COMPLETED" if asked.is_whole else "ended silently")
        except openai.APIError as error:
            asked.ends.append(f"error {error.code}")
        except Exception as error:  # noqa: BLE001 - the HTTP library's own kinds
            asked.ends.append(f"broken {type(error).__name__}")

    async def _openai_whole(self, asked: Asked) -> None:
        body = {
            "messages": [{"role": "user", "content": asked.prompt}],
            "max_tokens": asked.tokens,
            "seed": self._pace,
        }
        status, answer = await self._call("POST", "/v1/chat/completions", body)
        if status == OK:
            asked.text = answer["choices"][0]["message"]["content"]
            asked.is_whole = True
        asked.ends.append("COMPLETED" if status == OK else f"error {status}")


async def sdk_clients(python: str, url: str, requests: Sequence[Asked], pace: int) -> None:
    """Make requests with Runpod's client, in its own environment, several at once."""
    process = await asyncio.create_subprocess_exec(
        *(python, str(SDK_CLIENT)), env=os.environ | {"RUNPOD_ENDPOINT_BASE_URL": f"{url}/v2"},
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
    )  # fmt: skip
    plan = {"pace": pace, "requests": [[asked.prompt, asked.tokens] for asked in requests]}
    by_prompt = {asked.prompt: asked for asked in requests}
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(plan).encode())
    process.stdin.close()
    async for line in process.stdout:
        said = json.loads(line)
        asked = by_prompt[said["prompt"]]
        asked.job = said.get("job", asked.job)
        asked.ends += said.get("ends", [])
        asked.text += text_of(said.get("texts", []))
    assert await process.wait() == 0


async def events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, str]]:
    """Yield the server-sent events of a response; a comment has the field `""`."""
    event: dict[str, str] = {}
    async for line in content:
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(":")
            event[name] = value.removeprefix(" ")
        elif event:
            yield event
            event = {}


def _take_event(asked: Asked, event: dict[str, str]) -> str:
    """Record an event of `stream`; return its id."""
    if "restarted" in event.get("", ""):
        asked.text = ""
    if event.get("event") == "end":
        status = json.loads(event["data"])["status"]
        asked.ends.append(status)
        asked.is_whole = status == "COMPLETED"
    elif "data" in event:
        asked.text += text_of([json.loads(event["data"])["output"]])
    return event.get("id", "")


def text_of(output: Any) -> str:
    """Return the text of an output: one answer, or the elements of a streamed one."""
    elements = output if isinstance(output, list) else [output]
    return "".join(element["text"][0] for element in elements if element)


def _path(asked: Asked) -> str:
    return "/v2/stock" if asked.kind == "stock" else "/v2/default"
