"""The protocol of every connection: the guard, and what the relay and the channel of stock workers need from it."""

from proxy.api.protocol import HttpProtocol
from proxy.channel.stock.line import LineProtocol
from proxy.edge.guard import GuardProtocol


class EdgeProtocol(LineProtocol, HttpProtocol, GuardProtocol):
    """HTTP as it is spoken here."""
