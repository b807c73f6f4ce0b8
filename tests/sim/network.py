"""A simulated network: listeners, connections between nodes, and their faults."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import Any

from sim.node import NODE, Node
from sim.transport import PARTIAL_READ, SimSocket, SimTransport

Address = tuple[str, int]
Trace = Callable[[str], None]

WINDOWS = (2_048, 16_384, 65_536)
SEGMENTS = (1_460, 16_384)
# The least mean latency of a connection.
LATENCY_MIN_SECONDS = 0.0002
# Where a connection attempt to a link that is down looks again.
RETRY_SECONDS = 0.2


class OrderedSet(dict[Any, None]):
    """A set in the order of insertion, in place of uvicorn's sets of objects."""

    def add(self, element: Any) -> None:
        self[element] = None

    def discard(self, element: Any) -> None:
        self.pop(element, None)

    remove = discard


class Connection:
    """A connection between two nodes. `silent`: from now on nothing arrives, and no end knows."""

    def __init__(self, network: "Network", number: int, client: Node, server: Node) -> None:
        self.network = network
        self.number = number
        self.nodes = (client.name, server.name)
        self.is_silent = False
        self.is_broken = False
        draw = network.random
        self.window = draw.choice(WINDOWS)
        self.segment = draw.choice(SEGMENTS)
        # The mean latency in seconds.
        self.mean = draw.uniform(LATENCY_MIN_SECONDS, network.latency_seconds)
        name = ("127.0.0.1", 40_000 + number)
        address = ("127.0.0.1", 8000)
        self.client = SimTransport(self, client, name, address)
        self.server = SimTransport(self, server, address, name)
        self.client.connect(self.server)

    @property
    def is_blocked(self) -> bool:
        """True while the link between the two nodes is down."""
        return frozenset(self.nodes) in self.network.blocked

    @property
    def is_disturbed(self) -> bool:
        """True if a fault explains the end of this connection."""
        server = self.server.node
        return self.is_silent or self.is_broken or server.is_dead or server.is_ending

    def latency(self) -> float:
        """Draw the latency of one segment."""
        return self.mean * self.network.random.uniform(0.5, 1.5)

    def reset(self) -> None:
        """Break the connection, so that both ends notice it."""
        self.is_broken = True
        for end in (self.client, self.server):
            end.vanish()

    def __str__(self) -> str:
        return f"{self.number}:{self.nodes[0]}-{self.nodes[1]}"


class Listener:
    """A listening socket of a node; what `create_server` returns."""

    def __init__(self, network: "Network", factory: Callable[[], Any], node: Node) -> None:
        self.factory = factory
        self.node = node
        self._network = network

    def close(self) -> None:
        self._network.unlisten(self)

    async def wait_closed(self) -> None:
        """Do nothing: connections are closed by their owners."""


class Network:
    """All connections. `blocked`: pairs of node names whose link is down."""

    def __init__(self, loop: Any, random: Random, trace: Trace) -> None:
        self.loop = loop
        self.random = random
        self.trace = trace
        # The greatest mean latency of a connection.
        self.latency_seconds = 0.02
        self.blocked: dict[frozenset[str], None] = {}
        self.connections: dict[int, Connection] = {}
        self._listeners: dict[Address, Listener] = {}
        self._count = 0
        loop.network = self

    def listen(self, factory: Callable[[], Any], sock: SimSocket) -> Listener:
        """Accept connections for the current node."""
        node = NODE.get()
        if node is None:
            raise RuntimeError("only a node can listen")
        state = getattr(factory(), "server_state", None)
        if state is not None:
            # uvicorn's sets of objects would be iterated in the order of memory addresses.
            state.connections = OrderedSet()
            state.tasks = OrderedSet()
        listener = Listener(self, factory, node)
        self._listeners[sock.getsockname()] = listener
        node.on_kill.append(listener.close)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Refuse connections from now on."""
        for address, found in tuple(self._listeners.items()):
            if found is listener:
                del self._listeners[address]

    async def connect(self, factory: Callable[[], Any], address: Address) -> tuple[Any, Any]:
        """Open a connection from the current node."""
        node = NODE.get()
        if node is None:
            raise RuntimeError("only a node can connect")
        await asyncio.sleep(self.random.uniform(LATENCY_MIN_SECONDS, self.latency_seconds))
        listener = self._listeners.get(address)
        while listener is not None and self._is_blocked(node, listener.node):
            await asyncio.sleep(RETRY_SECONDS)
            listener = self._listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError(111, "Connect call failed")
        self._count += 1
        connection = Connection(self, self._count, node, listener.node)
        self.connections[self._count] = connection
        self.trace(f"open {connection}")
        for end in (connection.client, connection.server):
            end.node.on_kill.append(end.killed)
        # The kernel accepts, also while the process is stopped.
        connection.server.accept_soon(listener.factory)
        protocol = factory()
        connection.client.set_protocol(protocol)
        protocol.connection_made(connection.client)
        return connection.client, protocol

    def _is_blocked(self, one: Node, other: Node) -> bool:
        return frozenset((one.name, other.name)) in self.blocked

    def left(self, transport: SimTransport) -> None:
        """Note that one end of a connection is closed."""
        connection = transport.connection
        self.trace(f"shut {connection} {transport.node.name}")
        if connection.client.is_gone and connection.server.is_gone:
            self.connections.pop(connection.number, None)

    def read_size(self, available: int) -> int:
        """Draw the number of bytes that the next read returns."""
        if available > 1 and self.random.random() < PARTIAL_READ:
            return self.random.randrange(1, available)
        return available

    def note_read(self, transport: SimTransport, size: int) -> None:
        self.trace(f"read {transport.connection} {transport.node.name} {size}")

    def close(self) -> None:
        """Close all connections, at the end of the simulation."""
        for connection in tuple(self.connections.values()):
            connection.client.killed()
            connection.server.killed()

    def block(self, one: str, other: str, seconds: float) -> None:
        """Take the link between two nodes down for a while."""
        pair = frozenset((one, other))
        self.blocked[pair] = None
        self.loop.call_later(seconds, self.blocked.pop, pair, None, context=Context())
