"""URLs that one parser takes for a public address, and another for a private one."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

# The second line: the metadata services of cloud providers.
PRIVATE_V4 = """
    127.0.0.1 127.0.0.2 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1
    169.254.169.254 100.100.100.200 192.0.0.192 168.63.129.16
    192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 255.255.255.255
"""
PRIVATE_V6 = """
    :: ::1 fe80::1 fec0::1 fc00::1 fd00:ec2::254 fd20:ce::254 ff02::1 ff0e::1 100::1 2001:db8::1
    2001:10::1 2001:20::1 3fff::1 5f00::1 64:ff9b:1::7f00:1 4000::1
"""
V4 = PRIVATE_V4.split()
V6 = PRIVATE_V6.split()
FULLWIDTH = str.maketrans(
    "0123456789.", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19\uff0e"
)
CIRCLED = str.maketrans(
    "0123456789", "\u24ea\u2460\u2461\u2462\u2463\u2464\u2465\u2466\u2467\u2468"
)
DOTS = ("\u3002", "\uff0e", "\uff61", "\u2024", "%2e")

NAMES = """
    localhost LOCALHOST localhost. foo.localhost localhost.localdomain ip6-localhost broadcasthost
    redis _gateway metadata metadata.google.internal instance-data.ec2.internal
    kubernetes.default.svc default.svc.cluster.local host.docker.internal gateway.docker.internal
    router.lan printer.local 1.0.0.127.in-addr.arpa router.home.arpa
    . .. .com a..b example.com. example.com.. 0x7f.1 127.1 1.2.3.4.5 example.0x a.08
"""


def hidden(text: str) -> Iterator[str]:
    """Yield IPv6 addresses that embed this IPv4 address."""
    number = int(IPv4Address(text))
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    yield f"::ffff:{text}"
    yield f"::ffff:{high}:{low}"
    yield f"0:0:0:0:0:ffff:{high}:{low}"
    # IPv4-compatible
    yield f"::{text}"
    # IPv4-translated
    yield f"::ffff:0:{high}:{low}"
    # NAT64
    yield f"64:ff9b::{high}:{low}"
    yield f"64:ff9b::{text}"
    # NAT64 with a local prefix
    yield f"64:ff9b:1::{high}:{low}"
    # 6to4
    yield f"2002:{high}:{low}::1"
    # Teredo, as the server and as the client
    yield str(IPv6Address((0x2001_0000 << 96) | (number << 64) | (~number & 0xFFFF_FFFF)))


def numbers(text: str) -> Iterator[str]:
    """Yield other notations of an IPv4 address that C libraries or browsers accept."""
    a, b, c, d = (int(part) for part in text.split("."))
    number = int(IPv4Address(text))
    yield text
    yield str(number)
    yield hex(number)
    yield f"0{number:o}"
    yield f"0X{number:X}"
    # Some parsers wrap around at 32 bits.
    yield f"{number + 2**32}"
    yield f"{a}.{(b << 16) + (c << 8) + d}"
    yield f"{a}.{b}.{(c << 8) + d}"
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"{a:#x}.{b:#x}.{c:#x}.{d:#x}"
    yield f"0{a:o}.{b:#x}.{c}.{d}"
    yield f"{a:04d}.{b:04d}.{c:04d}.{d:04d}"
    yield f"{text}."
    yield f"{text}.."
    yield f"{a}.{b}.{c}.{d + 256}"
    yield text.translate(FULLWIDTH)
    yield text.translate(CIRCLED)
    yield from (text.replace(".", dot) for dot in DOTS)
    yield "".join(f"%{ord(character):02x}" for character in text)


def addresses(port: int) -> Iterator[str]:
    """Yield URLs whose host is an address, in any notation."""
    for text in V4:
        yield from (f"http://{host}:{port}/" for host in numbers(text))
        yield from (f"http://[{host}]:{port}/" for host in hidden(text))
    yield from (f"http://[{text}]:{port}/" for text in V6)
    yield from (f"http://[{text}%25lo]:{port}/" for text in ("::1", "fe80::1"))
    yield f"http://[::1]:{port}"
    yield f"http://[0:0:0:0:0:0:0:1]:{port}/"
    yield f"http://::1:{port}/"
    yield f"http://[127.0.0.1]:{port}/"
    yield f"http://[v1.127]:{port}/"
    yield f"http://[::1].example.com:{port}/"


def parsers(port: int) -> Iterator[str]:
    """Yield URLs that two parsers read differently."""
    bad = f"127.0.0.1:{port}"
    for good in ("example.com", "93.184.216.34"):
        yield f"http://{good}@{bad}/"
        yield f"http://{good}:80@{bad}/"
        yield f"http://user:{good}@{bad}/"
        yield f"http://{bad}@{good}/"
        yield f"http://{bad}\\@{good}/"
        yield f"http://{good}\\@{bad}/"
        yield f"http://{good}\\.{bad}/"
        yield f"http://{good} @{bad}/"
        yield f"http://{good}#@{bad}/".replace("#@", "%23@")
        yield f"http://{good}%2f@{bad}/"
        yield f"http://{good}%00.{bad}/"
        yield f"http://{good}%0d%0a{bad}/"
        yield f"http://{good};@{bad}/"
        yield f"http://{good}&@{bad}#@{good}/"
        yield f"http://{good},{bad}/"
        yield f"http:\\\\{good}@{bad}/"
        yield f"http://{good}:80:{port}/"
        yield f"http://{good}:80@/"
        yield f"http:///{good}/"
        yield f"http:/{good}/"
        yield f"http:{good}/"
        yield f"//{good}/"
        yield f"{good}"
        yield f"http://[{good}]/"
    yield f"http://@{bad}/"
    yield f"http://:@{bad}/"
    yield f"http://{bad}"


# Control characters, blanks, invisible characters, a lone surrogate, and the backslash.
FORBIDDEN_CHARACTERS = (
    "\x00\x01\t\n\r\x0b\x0c\x1b \x7f\x80\x85\xa0\xad\u200b\u200d\u2028\u202e\ufeff\udcff\\"
)


def characters(port: int) -> Iterator[str]:
    """Yield URLs with characters that are not allowed in URLs."""
    for mark in FORBIDDEN_CHARACTERS:
        yield f"http://example.com{mark}/"
        yield f"http://exa{mark}mple.com/"
        yield f"http://example.com/hook{mark}x"
        yield f"{mark}http://127.0.0.1:{port}/"
        yield f"ht{mark}tp://example.com/"
    yield "http://example.com/ HTTP/1.1\r\nX-Injected: 1\r\n\r\n"
    yield "http://example.com:80\r\nHost: other/"
    yield f"http://b\u00fccher.example:{port}/"
    # Some parsers normalize this character to a/c.
    yield f"http://\u2100.example:{port}/"


SCHEMES = "ftp file gopher dict ldap ws wss unix data javascript http+unix"
CLOSED_PORTS = "0 1 22 25 81 442 445 993 1023 65536 99999 080 -1 +80"


def schemes(port: int) -> Iterator[str]:
    """Yield URLs with other schemes, and with ports of other services."""
    for scheme in SCHEMES.split():
        yield f"{scheme}://example.com:{port}/"
    yield from (
        "file:///etc/passwd",
        "unix:/run/docker.sock",
        "",
        " ",
        "http",
        "http:",
        "http://",
        "https:///",
        "://",
    )
    for closed in (*CLOSED_PORTS.split(), ""):
        yield f"http://example.com:{closed}/"
    yield "http://example.com:\uff18\uff10/"
    yield "http://example.com:http/"


def names(port: int) -> Iterator[str]:
    """Yield URLs with host names that are never public, or invalid."""
    for host in NAMES.split():
        yield f"http://{host}:{port}/"
    yield f"http://{'x' * 64}.com:{port}/"
    yield f"http://{'.'.join(['abcdefghi'] * 26)}:{port}/"


FAMILIES = (addresses, parsers, characters, schemes, names)
"""Functions of the port of a private server; all their URLs are rejected without a DNS query."""
