"""`doctor` prints the passed checks, the failed checks and their remedies."""

import re
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness.proxy.command import command
from harness.proxy.server import Proxy


async def examined(*flags: str, token: str = "") -> tuple[int, str]:
    """Run `doctor`; return its exit status and its output."""
    async with command("doctor", *flags, COLUMNS="200", WORKER_TOKEN=token) as doctor:
        return await doctor.process.wait(), doctor.text


async def test_all_checks_pass(proxy: Proxy) -> None:
    status, text = await examined("--connect", proxy.url, token=proxy.parts.token)
    assert re.search(r"ok  Python \.+ 3\.", text)
    assert re.search(r"ok  GPU \.+ ", text)
    assert re.search(r"ok  compiler \.+ \S+", text) or "NOT vLLM" in text
    assert re.search(r"ok  disk \.+ .* GiB free", text)
    assert re.search(r"ok  proxy \.+ http://\S+ answers", text)
    assert re.search(r"ok  worker token .* accepted for endpoint default", text)
    assert status == ("NOT" in text)
    assert not list(proxy.parts.fleet)  # the check does not register a worker


@pytest.mark.parametrize(
    ("token", "flags", "says"),
    [
        ("wrong", (), "Wrong worker token"),
        ("", (), "no token given"),
        ("{token}", ("--endpoint", "nowhere"), "no endpoint 'nowhere' here"),
    ],
)
async def test_a_rejection_shows_the_message_of_the_proxy(
    proxy: Proxy, token: str, flags: tuple[str, ...], says: str
) -> None:
    given = token.format(token=proxy.parts.token)
    status, text = await examined("--connect", proxy.url, *flags, token=given)
    assert status == 1
    assert says in text
    assert "WORKER_TOKEN" in text
    assert proxy.parts.token not in text


async def test_an_unreachable_proxy_is_a_failure() -> None:
    status, text = await examined("--connect", "http://127.0.0.1:9")
    assert status == 1
    assert "NOT proxy" in text
    assert "WORKER_CONNECT" in text


async def test_a_port_in_use_is_a_failure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, text = await examined(
            "--port", str(port), "--data-dir", str(tmp_path / "not" / "there")
        )
    assert status == 1
    assert f"NOT port {'.' * 9} {port}: Address already in use" in text
    assert f"--port {port + 1}" in text


async def test_a_missing_compiler_is_reported_and_is_not_a_failure(tmp_path: Path) -> None:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    async with command(
        "doctor", "--data-dir", str(tmp_path), COLUMNS="300", CXX="no-such-compiler"
    ) as doctor:
        await doctor.process.wait()
    assert re.search(
        r"ok  compiler \.+ C\+\+ compiler \(no-such-compiler\) not found: vLLM runs without",
        doctor.text,
    )
