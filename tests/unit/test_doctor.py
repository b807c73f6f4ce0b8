"""`doctor --connect` reports any misbehaving server as a finding, without a traceback."""

from pathlib import Path

import pytest
from harness.network.misbehaving import CONNECTIONS, HANDSHAKES, misbehaving, status

from proxy.cli import doctor

ALIVE = status("200 OK", b"ok")


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_server_that_is_not_the_proxy_is_a_finding(name: str, tmp_path: Path) -> None:
    with misbehaving() as (server, place):
        server.behaviour = HANDSHAKES[name]
        finding = found("proxy", place, tmp_path)
    assert finding.is_ok == (name == "200 with a page")
    assert 0 < len(finding.seen) < 300


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_handshake_that_fails_is_a_finding(name: str, tmp_path: Path) -> None:
    with misbehaving() as (server, place):
        server.first, server.behaviour = ALIVE, HANDSHAKES[name]
        finding = found("worker token", place, tmp_path)
    assert not finding.is_ok
    assert 0 < len(finding.seen) < 300
    assert ("WORKER_TOKEN" in finding.remedy) == (name in ("401", "403", "404"))


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_connection_that_is_lost_is_a_finding_too(name: str, tmp_path: Path) -> None:
    with misbehaving() as (server, place):
        server.first, server.behaviour = ALIVE, CONNECTIONS[name]
        assert found("worker token", place, tmp_path).seen


def found(name: str, place: str, folder: Path) -> doctor.Finding:
    findings = doctor.examine(f"http://{place}", "default", "token", 0, folder, seconds=1.0)
    return {one.name: one for one in findings}[name]
