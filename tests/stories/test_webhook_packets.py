"""The real sender, a real name server and all attacks, in a network with a packet capture."""

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from typing import Any

import pytest
from harness.data import url_tricks
from harness.load.figures import tell
from harness.network.ssrf_netns import PRIVATE, PUBLIC, PUBLIC_V6, REDIRECTS, TRIES
from harness.proxy.command import ROOT

SECONDS = 100
UNSHARE = ("unshare", "--net", "--mount")
PROBE = """ip link add out type veth peer name in && ip link set lo up &&
ip address add fd00::1/128 dev lo &&
mount --bind /etc/hosts /etc/resolv.conf"""
# Private addresses that are not dialled as they are written.
NOT_DIALLED = {
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "ff02::1",
    "ff0e::1",
}


async def in_a_namespace(*command: str) -> tuple[int | None, bytes]:
    """Run a command in its own network namespace; return its exit status and output."""
    path = os.pathsep.join(str(ROOT / name) for name in ("", "tests"))
    process = await asyncio.create_subprocess_exec(
        *UNSHARE, *command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=PIPE
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, printed


async def skip_without_namespaces() -> None:
    has_tools = all(map(shutil.which, ("unshare", "ip", "mount")))
    status = (await in_a_namespace("sh", "-c", PROBE))[0] if has_tools else None
    if status != 0:
        pytest.skip(
            "needs network namespaces: root with CAP_SYS_ADMIN, IPv6, "
            "and apt-get install iproute2 util-linux"
        )


async def test_no_trick_sends_a_packet_to_a_private_address() -> None:
    await skip_without_namespaces()
    status, printed = await in_a_namespace(sys.executable, "-m", "harness.network.ssrf_netns")
    assert status == 0
    plain, guarded = [json.loads(line) for line in printed.splitlines()]

    seen = set(plain["packets"])
    assert set(PRIVATE) - seen <= NOT_DIALLED, "else a packet would not be noticed"
    assert PUBLIC in seen

    private = {
        address: number
        for address, number in guarded["packets"].items()
        if address not in (PUBLIC, PUBLIC_V6)
    }
    tell("tries to make a webhook reach a private address", guarded["tried"])
    tell("packets to a private address", sum(private.values()), "0")
    assert private == {}
    assert set(guarded["names"]) == {"127.0.0.1", "127.0.0.53"}
    assert_the_rest_arrived(guarded)


def assert_the_rest_arrived(guarded: dict[str, Any]) -> None:
    """Assert that public receivers were reached, before a name changed or by a redirect."""
    assert guarded["tried"] > sum(len(set(family(1))) for family in url_tricks.FAMILIES)
    rebound = [url for url in guarded["acknowledged"] if "rebind" in url]
    assert len(rebound) == len(PRIVATE) * TRIES / 2
    assert [url for url in guarded["acknowledged"] if url.endswith("/good")] == guarded[
        "acknowledged"
    ][len(rebound) :]
    assert sum(path.startswith("/to/") for path in guarded["asked"]) == REDIRECTS
    assert guarded["asked"].count("/good") == 3
