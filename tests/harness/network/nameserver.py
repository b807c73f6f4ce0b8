"""A DNS server over UDP with the names of a test. Its answers must not be cached (TTL 0)."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias

A, AAAA, CNAME = 1, 28, 5
NO_SUCH_NAME = 3

Table: TypeAlias = Callable[[str, int], Sequence[str] | None]
"""Returns the addresses, or aliases, of a name for its nth query; None if it does not exist."""


class NameServer(asyncio.DatagramProtocol):
    """A DNS server for A and AAAA records."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._asked: dict[tuple[str, int], int] = {}
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = _read_name(data)
        (kind,) = struct.unpack_from(">H", data, end)
        number = self._asked[name, kind] = self._asked.get((name, kind), -1) + 1
        found = self._table(name, number)
        records = [record for text in found or () if (record := _record(text, kind))]
        flags = 0x8180 | (NO_SUCH_NAME if found is None else 0)
        head = struct.pack(">HHHHHH", int.from_bytes(data[:2]), flags, 1, len(records), 0, 0)
        self._transport.sendto(head + data[12 : end + 4] + b"".join(records), addr)


def _record(text: str, kind: int) -> bytes:
    """Return a resource record for the queried name; empty if it is not of the queried type."""
    address: IPv4Address | IPv6Address
    try:
        address = ip_address(text)
    except ValueError:
        content, its_kind = (
            b"".join(bytes([len(part)]) + part.encode() for part in text.split(".")) + b"\0",
            CNAME,
        )
    else:
        content, its_kind = address.packed, A if address.version == 4 else AAAA
    if its_kind not in (kind, CNAME):
        return b""
    return struct.pack(">HHHIH", 0xC00C, its_kind, 1, 0, len(content)) + content


def _read_name(data: bytes) -> tuple[str, int]:
    labels, place = [], 12
    while length := data[place]:
        labels.append(data[place + 1 : place + 1 + length].decode("latin-1"))
        place += 1 + length
    return ".".join(labels).lower(), place + 1
