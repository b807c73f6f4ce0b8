"""The network outside of this machine, as an agent sees it: an HTTP proxy that only takes notes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Outside:
    """An HTTP proxy that closes every connection. `requests` are the first lines it received."""

    url: str = ""
    requests: list[str] = field(default_factory=list)

    def variables(self) -> dict[str, str]:
        """Return the variables that lead all requests here, except those to the loopback."""
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        found = dict.fromkeys(names, self.url) | {"NO_PROXY": "127.0.0.1"}
        return found | {name.lower(): value for name, value in found.items()}

    async def note(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.readline()).decode(errors="replace").strip())
        writer.close()


@asynccontextmanager
async def outside() -> AsyncIterator[Outside]:
    """Run it on a free port."""
    found = Outside()
    async with await asyncio.start_server(found.note, "127.0.0.1", 0) as server:
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield found
