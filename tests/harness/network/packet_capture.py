"""Sees every packet of a network namespace, on whatever interface it leaves, loopback too."""

import asyncio
import socket
from collections import Counter
from ipaddress import ip_address

ALL = 0x0003  # ETH_P_ALL
IPV4, IPV6 = 0x0800, 0x86DD
ICMPV6 = 58
NAMES = 53
OUTGOING = 4  # PACKET_OUTGOING: a packet over loopback is seen twice, once so
BUFFER = 16 * 1024 * 1024  # none may be lost while others are looked at


class Wiretap:
    """Where packets went, since it was opened. Needs to be root."""

    def __init__(self) -> None:
        self.packets: Counter[str] = Counter()  # by the address that they were for
        self.names: Counter[str] = (
            Counter()
        )  # questions to name servers and their answers, likewise
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self.look)

    def look(self) -> None:
        """Take down what has passed by."""
        while True:
            try:
                packet, (_, ethertype, direction, *_) = self._socket.recvfrom(2048)
            except BlockingIOError:
                return
            if direction == OUTGOING and ethertype in (IPV4, IPV6):
                self._note(packet, ethertype)

    def _note(self, packet: bytes, ethertype: int) -> None:
        if ethertype == IPV4:
            to, protocol, begin = ip_address(packet[16:20]), packet[9], (packet[0] & 15) * 4
        else:
            to, protocol, begin = ip_address(packet[24:40]), packet[6], 40
        if protocol == ICMPV6 or (ethertype == IPV6 and protocol == 0):
            return  # the kernel looks for its neighbours by itself
        has_ports = protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        ports = (
            [int.from_bytes(packet[begin + at : begin + at + 2]) for at in (0, 2)]
            if has_ports
            else []
        )
        (self.names if NAMES in ports else self.packets)[str(to)] += 1

    def close(self) -> None:
        self.look()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
