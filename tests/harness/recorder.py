"""Writes down what an engine's app sends, from inside the worker: a middleware for vLLM's own `--middleware` flag.

Only requests with a `user` field that begins with `record-` are written, to the file of that name in `RECORD_FOLDER`:
one line of hexadecimal digits for each body the app sent.
"""

import json
import os
from pathlib import Path
from typing import Any


class Recorder:
    """An ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        first = await receive()
        name = _name(first.get("body", b""))
        messages = [first]

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        async def record(message: Any) -> None:
            if name is not None and message["type"] == "http.response.body":
                with (Path(os.environ["RECORD_FOLDER"]) / name).open("a") as kept:
                    kept.write(f"{message.get('body', b'').hex()}\n")
            await send(message)

        await self.app(scope, again, record)


def _name(body: bytes) -> str | None:
    try:
        user = json.loads(body).get("user")
    except (ValueError, AttributeError):
        return None
    return user if isinstance(user, str) and user.startswith("record-") else None


def recorded(folder: Path, name: str) -> bytes:
    """All that the app sent for this request."""
    return b"".join(bytes.fromhex(line) for line in (folder / name).read_text().splitlines())
