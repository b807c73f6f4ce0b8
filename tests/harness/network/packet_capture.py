"""A capture of all packets that leave a network namespace, on any interface, including loopback."""

import asyncio
import socket
from collections import Counter
from ipaddress import ip_address

ETH_P_ALL = 0x0003
IPV4, IPV6 = 0x0800, 0x86DD
ICMPV6 = 58
DNS_PORT = 53
# A packet over loopback is captured twice, once with this direction.
PACKET_OUTGOING = 4
# No packet may be lost while others are handled.
RECEIVE_BUFFER_BYTES = 16 * 1024 * 1024


class Wiretap:
    """The number of packets per destination address since the capture was opened. Requires root.

    DNS queries and responses are counted in `names`, all other packets in `packets`.
    """

    def __init__(self) -> None:
        self.packets: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self.read)

    def read(self) -> None:
        """Count the packets in the buffer."""
        while True:
            try:
                packet, (_, ethertype, direction, *_) = self._socket.recvfrom(2048)
            except BlockingIOError:
                return
            if direction == PACKET_OUTGOING and ethertype in (IPV4, IPV6):
                self._note(packet, ethertype)

    def _note(self, packet: bytes, ethertype: int) -> None:
        if ethertype == IPV4:
            to, protocol, begin = ip_address(packet[16:20]), packet[9], (packet[0] & 15) * 4
        else:
            to, protocol, begin = ip_address(packet[24:40]), packet[6], 40
        if protocol == ICMPV6 or (ethertype == IPV6 and protocol == 0):
            # Neighbour discovery of the kernel.
            return
        has_ports = protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        ports: list[int] = []
        if has_ports:
            ports = [int.from_bytes(packet[begin + at : begin + at + 2]) for at in (0, 2)]
        (self.names if DNS_PORT in ports else self.packets)[str(to)] += 1

    def close(self) -> None:
        self.read()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
