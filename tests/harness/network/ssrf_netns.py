"""The real sender in a network namespace with reachable private addresses and a packet capture.

`unshare --net --mount python -m harness.network.ssrf_netns`, as root, prints a line of JSON for
each sender. Names are resolved by the system's resolver, at a DNS server that returns private
addresses, at the first query or later.
"""

import asyncio
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from harness.data import url_tricks
from harness.data.clock import FakeClock
from harness.network.nameserver import NameServer
from harness.network.packet_capture import Wiretap
from proxy.webhooks.lookup import SendTimeouts
from proxy.webhooks.sender import Sender
from proxy.webhooks.url_policy import Allowed

PUBLIC, PUBLIC_V6 = "93.184.216.34", "2a00:1450:4001:81b::200e"
NAME_SERVER, PORT = "127.0.0.53", 8080
REDIRECTS, TRIES = 6, 4
PRIVATE = (*url_tricks.V4, *url_tricks.V6)
ANSWERS: tuple[list[str], ...] = (
    *([text] for text in PRIVATE),
    *([hidden] for text in url_tricks.V4 for hidden in url_tricks.hidden(text)),
    *([PUBLIC, text] for text in PRIVATE),
    *([text, PUBLIC] for text in PRIVATE),
    *([PUBLIC_V6, text] for text in PRIVATE),
)
SET_UP = (
    "link set lo up",
    f"address add {PUBLIC}/32 dev lo",
    f"address add {PUBLIC_V6}/128 dev lo",
    # Some of the private addresses are local, the others are not assigned.
    "address add 169.254.169.254/32 dev lo",
    "address add 10.0.0.1/32 dev lo",
    "address add fd00:ec2::254/128 dev lo",
    "link add out type veth peer name in",
    # Without ARP, a packet leaves at once, without a query for its destination.
    "link set out arp off up",
    "link set in up",
    "address add 198.18.7.1/32 dev out",
    "address add 2a00:1450:4001:900::1/128 dev out",
    "route add default dev out",
    "-6 route add default dev out",
)


def table(name: str, number: int) -> Sequence[str] | None:
    """Resolve `answerN` to the Nth of `ANSWERS`.

    `rebindN` resolves first to a public, then to a private address.
    """
    first, _, rest = name.partition(".")
    if rest.startswith("corp"):
        # All names exist in this machine's own domain.
        return ["10.0.0.1"]
    if name == "good.example":
        return [PUBLIC]
    if first.startswith("answer"):
        return ANSWERS[int(first.removeprefix("answer"))]
    if first.startswith("rebind"):
        return [PRIVATE[int(first.removeprefix("rebind"))] if number % 2 else PUBLIC]
    if first.startswith("alias"):
        return [
            f"answer{first.removeprefix('alias')}.example",
            PRIVATE[int(first.removeprefix("alias"))],
        ]
    return None


def urls() -> Iterator[str]:
    """Yield the URLs of all attacks."""
    for family in url_tricks.FAMILIES:
        yield from sorted(set(family(PORT)))
    yield from (f"http://answer{number}.example:{PORT}/" for number in range(len(ANSWERS)))
    yield from (f"http://alias{number}.example:{PORT}/" for number in range(len(url_tricks.V4)))
    yield f"http://unknown.example:{PORT}/"


def set_up() -> None:
    """Configure the network and the resolver of the namespace."""
    for words in SET_UP:
        subprocess.run(["ip", *words.split()], check=True)
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(
            f"nameserver {NAME_SERVER}\nsearch corp.internal\noptions timeout:1 attempts:1\n"
        )
    subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
    Path(file.name).unlink()


def say(what: str, **more: object) -> None:
    print(json.dumps({"what": what} | more), flush=True)


async def dial(address: str) -> None:
    """Connect to an address, as a sender without a guard would."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as plain, suppress(OSError):
        plain.setblocking(False)
        plain.connect_ex((address, PORT))


async def serve() -> list[str]:
    """Start receivers at the public addresses; return the list of the paths of their requests."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path.startswith("/to/"):
            where = PRIVATE[int(request.path.removeprefix("/to/"))]
            host = f"[{where}]" if ":" in where else where
            return web.Response(status=307, headers={"location": f"http://{host}:{PORT}/"})
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    for host in (PUBLIC, PUBLIC_V6):
        await web.TCPSite(runner, host, PORT).start()
    return asked


async def attack() -> None:
    """Send without the guard first, to prove that packets are captured; then with it."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: NameServer(table), local_addr=(NAME_SERVER, 53))
    asked = await serve()
    sender = Sender(bytes(32), Allowed(), FakeClock(), timeouts=SendTimeouts(2.0, 5.0))
    async with sender.closing():
        tap = Wiretap()
        for address in (*PRIVATE, PUBLIC):
            await dial(address)
        tap.close()
        say("a sender without a guard", packets=tap.packets)
        tap = Wiretap()
        tried, let_go = await try_all(sender)
        tap.close()
    say(
        "the sender",
        packets=tap.packets,
        names=tap.names,
        tried=tried,
        acknowledged=let_go,
        asked=asked,
    )


async def try_all(sender: Sender) -> tuple[int, list[str]]:
    """Send to all URLs; return their number, and the URLs that acknowledged the webhook."""
    again = [
        f"http://rebind{number}.example:{PORT}/"
        for number in range(len(PRIVATE))
        for _ in range(TRIES)
    ]
    redirects = [f"http://good.example:{PORT}/to/{number}" for number in range(REDIRECTS)]
    good = [
        f"http://{PUBLIC}:{PORT}/good",
        f"http://[{PUBLIC_V6}]:{PORT}/good",
        f"http://good.example:{PORT}/good",
    ]
    wanted = [*urls(), *again, *redirects, *good]
    return len(wanted), [url for url in wanted if await sender.send(url, "a-u1-0", b"{}") is None]


if __name__ == "__main__":
    set_up()
    asyncio.run(attack())
