"""The receiver of the simulated webhooks, and the check of the deliveries (I9)."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sim.clients import FINAL
from sim.machines import EPOCH_MILLIS, RECEIVER, ProxyMachine
from sim.node import Node
from sim.transport import SimSocket

CLOCK_TOLERANCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """A webhook that has arrived."""

    message: str
    job: str
    status: str


class Receiver:
    """An HTTP server that is never down.

    The path of a webhook's URL is the reaction to the first delivery with an id (see
    `ClientPlan.webhook`). Later ones are acknowledged.
    """

    def __init__(self, world: Any, proxy: ProxyMachine) -> None:
        self._world = world
        self._proxy = proxy
        self._node = Node("receiver")
        self._seen: Counter[str] = Counter()
        self.delivered: list[Delivered] = []

    async def start(self) -> None:
        """Listen from now on."""
        loop = self._world.loop
        await self._node.start(loop, loop.create_server(self._protocol, sock=SimSocket(RECEIVER)))

    def missing(self, job: Any) -> str:
        """Return the fault in the deliveries of a job that has ended; empty if there is none."""
        found = [one for one in self.delivered if one.job == job.id]
        ends = {one.message: one.status for one in found}
        if any(ends[one.message] != one.status for one in found):
            return f"I9: webhooks of {job.id} with one id differ: {found}"
        if any(one.status not in FINAL for one in found):
            return f"I9: a webhook of {job.id} before its end: {found}"
        if job.id in self._world.given_up or job.end in ends.values():
            return ""
        return f"I9: no webhook of {job.id}, which is {job.end}"

    def _check_time(self, message: str, moment: float) -> None:
        """Check that a delivery was signed with the time of the proxy's wall clock."""
        now = self._world.loop.time()
        shown = EPOCH_MILLIS / 1000 + now + self._proxy.wall_seconds
        if now > self._world.calm_at and abs(moment - shown) > CLOCK_TOLERANCE_SECONDS:
            self._world.violate(f"I9: webhook {message} has the time {moment}, not {shown}")

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(loop=self._world.loop)
        return asyncio.StreamReaderProtocol(reader, self._serve, loop=self._world.loop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport: Any = writer.transport
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
            body = json.loads(await reader.readexactly(int(fields["content-length"])))
            reaction = head.split("/")[1]
            message = fields["webhook-id"]
            self._seen[message] += 1
            is_first = self._seen[message] == 1
            self._check_time(message, float(fields["webhook-timestamp"]))
            self._world.trace(f"webhook {message} {body['status']} {reaction} {is_first}")
            if is_first and reaction == "hang":
                await reader.read()
            elif is_first and reaction == "reset":
                transport.abort()
            else:
                is_refused = is_first and reaction == "refuse"
                if not is_refused:
                    self.delivered.append(Delivered(message, body["id"], body["status"]))
                status = b"503 Service Unavailable" if is_refused else b"200 OK"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)
        except (OSError, asyncio.IncompleteReadError):
            # The proxy is gone, or its connection was cut.
            pass
        finally:
            transport.close()
