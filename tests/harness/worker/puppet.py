"""A worker with the native protocol that does nothing by itself: the test sends its frames."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from harness.proxy.server import Proxy
from proxy.wire import frames

TIMEOUT_SECONDS = 20.0


@dataclass
class Puppet:
    """One connection of a worker."""

    socket: aiohttp.ClientWebSocketResponse
    _heard: deque[frames.ToWorker] = field(default_factory=deque)

    async def say(self, *said: frames.Frame) -> None:
        await self.socket.send_bytes(frames.encode(list(said)))

    async def hear(self) -> frames.ToWorker:
        """Return the next frame."""
        while not self._heard:
            message = await self.socket.receive(timeout=TIMEOUT_SECONDS)
            assert message.type == aiohttp.WSMsgType.BINARY, (message, self.socket.close_code)
            self._heard.extend(frames.decode_to_worker(message.data))
        return self._heard.popleft()

    async def job(self) -> frames.Job:
        """Return the next job."""
        while not isinstance(frame := await self.hear(), frames.Job):
            pass
        return frame

    async def stopped(self) -> frames.Stop:
        """Return the next stop frame."""
        while not isinstance(frame := await self.hear(), frames.Stop):
            pass
        return frame

    async def closed(self) -> tuple[int | None, str]:
        """Wait for the proxy to close the connection; return the code and the reason."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                message = await self.socket.receive()
                if message.type in (
                    aiohttp.WSMsgType.CLOSE,
                    aiohttp.WSMsgType.CLOSED,
                    aiohttp.WSMsgType.ERROR,
                ):
                    return self.socket.close_code, str(message.extra or "")


def hello(
    name: str = "w-puppet",
    models: Sequence[frames.Model] = (),
    holds: Sequence[frames.Hold] = (),
    instance: str = "",
) -> frames.Hello:
    """Return the hello frame of a correct worker."""
    return frames.Hello(frames.PROTOCOL, name, "puppet 1", list(models), list(holds), instance)


def whole(job: frames.Job) -> tuple[frames.Head, frames.Chunk, frames.End]:
    """Return the frames of a whole answer."""
    return (
        frames.Head(job.job, job.attempt, 200, "application/json"),
        frames.Chunk(job.job, job.attempt, b"{}"),
        frames.End(job.job, job.attempt, "completed"),
    )


@asynccontextmanager
async def puppet(proxy: Proxy, *first: frames.Frame, slots: int = 0) -> AsyncIterator[Puppet]:
    """Connect a worker that has sent these frames, or, by default, hello and its slots."""
    headers = {"Authorization": f"Bearer {proxy.parts.token}"}
    async with proxy.http.ws_connect(
        "/v2/default/worker", headers=headers, max_msg_size=0
    ) as socket:
        one = Puppet(socket)
        await one.say(*(first or (hello(), frames.Credit(slots, 0))))
        yield one
