"""A recorder of an engine app's input and output, as middleware for vLLM's `--middleware`.

It runs inside the worker, and records only requests whose `user` field starts with `record-`, in
the file of that name in `RECORD_FOLDER`: one line of hexadecimal digits for the body of the
request, then one for each body that the app sent.
"""

import json
import os
from pathlib import Path
from typing import Any


class Recorder:
    """An ASGI middleware that records request and response bodies."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        first = await receive()
        name = _name(first.get("body", b""))
        messages = [first]
        if name is not None:
            _write(name, first["body"])

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        async def record(message: Any) -> None:
            if name is not None and message["type"] == "http.response.body":
                _write(name, message.get("body", b""))
            await send(message)

        await self.app(scope, again, record)


def _name(body: bytes) -> str | None:
    try:
        user = json.loads(body).get("user")
    except (ValueError, AttributeError):
        return None
    return user if isinstance(user, str) and user.startswith("record-") else None


def _write(name: str, body: bytes) -> None:
    with (Path(os.environ["RECORD_FOLDER"]) / name).open("a") as kept:
        kept.write(f"{body.hex()}\n")


def recorded(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Return the request body that the app received, and all the bytes that it sent."""
    request, *answer = (bytes.fromhex(line) for line in (folder / name).read_text().splitlines())
    return request, b"".join(answer)
