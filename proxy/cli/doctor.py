"""The command `doctor`: check everything that a worker needs, and print a remedy for what fails."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from urllib.request import ProxyHandler, build_opener

from rich.console import Console
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect as dial

from proxy.cli.version import installed, installed_vllm
from proxy.wire.escaping import escape_controls

# The first and the last Python version for which vLLM publishes wheels.
SUPPORTED_PYTHONS = ((3, 11), (3, 14))
# A small model and vLLM's caches.
DISK_MIN_FREE_BYTES = 5 * 1024**3
NETWORK_TIMEOUT_SECONDS = 5.0
RESPONSE_SHOWN_CHARACTERS = 200
# The statuses with which the proxy rejects a worker. Every other one comes from a server before it.
WORKER_REJECTED_STATUSES = (401, 403, 404)
NO_WEBSOCKET = (
    "A load balancer or firewall in front of the proxy rejects WebSockets."
    " Allow them in its configuration."
)
# Our own program may be slow to start on a busy machine.
COMPILER_CHECK_TIMEOUT_SECONDS = 30.0
NVIDIA_COMMAND = ("nvidia-smi", "-L")
NVIDIA_TIMEOUT_SECONDS = 5.0
# A program of the worker, which knows the compilers that torch tries.
COMPILER_COMMAND = (sys.executable, "-m", "worker_vllm.engine.compiler")


class Finding(NamedTuple):
    """The result of one check: its name, verdict, observed value, and the remedy if it failed."""

    name: str
    is_ok: bool
    seen: str
    remedy: str = ""


def examine(
    connect: str,
    endpoint: str,
    token: str,
    port: int,
    data_dir: Path,
    seconds: float = NETWORK_TIMEOUT_SECONDS,
) -> Iterator[Finding]:
    """Yield the finding of each check. With an empty `connect`, only this machine is checked.

    `seconds` is the timeout of each request to the proxy.
    """
    yield _python()
    yield from _engine()
    yield _disk(data_dir)
    if connect:
        reached = _proxy(connect, seconds)
        yield reached
        if reached.is_ok:
            yield _worker_token(connect, endpoint, token, seconds)
    else:
        yield _port(port)


def run(connect: str, endpoint: str, token: str, port: int, data_dir: Path) -> int:
    """Print the findings; return the exit status: 0, or 1 if a check failed."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    is_ok = True
    for finding in examine(connect, endpoint, token, port, data_dir):
        is_ok = is_ok and finding.is_ok
        console.print("[green]ok [/]" if finding.is_ok else "[red]NOT[/]", end=" ")
        # The value may be the response of an untrusted server.
        seen = escape_controls(finding.seen)
        console.print(f"{finding.name + ' ':.<14} {seen}", markup=False)
        if not finding.is_ok:
            console.print(f"    {finding.remedy}", markup=False)
    return 0 if is_ok else 1


def _python() -> Finding:
    first, last = SUPPORTED_PYTHONS
    is_ok = first <= sys.version_info[:2] <= last
    oldest = f"{first[0]}.{first[1]}"
    newest = f"{last[0]}.{last[1]}"
    remedy = f"Use Python {oldest} to {newest}: make up PYTHON=python{oldest}"
    return Finding("Python", is_ok, sys.version.split()[0], remedy)


def _engine() -> Iterator[Finding]:
    cards = _cards()
    yield Finding("GPU", is_ok=True, seen=", ".join(cards) or "none: vLLM runs on the CPU")
    build = installed_vllm()
    if build is None:
        yield Finding(
            "vLLM",
            is_ok=False,
            seen="not installed",
            remedy="Run `make up`, or serve another server with --upstream URL.",
        )
        return
    name, found = build
    fits = name == "vllm" or not cards
    remedy = (
        "This is the CPU build, but the machine has a GPU. Remove .venv and run `make up` again."
    )
    yield Finding("vLLM", fits, f"{name} {found}", remedy)
    torch = installed("torch")
    yield Finding(
        "torch",
        bool(torch),
        torch or "not installed",
        "The environment is incomplete. Run `make up` again.",
    )
    yield _compiler("gpu" if cards else "cpu")


def _compiler(device: str) -> Finding:
    """Check for a compiler of kernels. vLLM also runs without one, so this check never fails."""
    try:
        ended = subprocess.run(
            [*COMPILER_COMMAND, device],
            capture_output=True,
            text=True,
            timeout=COMPILER_CHECK_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("compiler", is_ok=True, seen=f"not checked: {error}")
    return Finding(
        "compiler",
        is_ok=True,
        seen=ended.stdout.strip() or "not checked: the worker package is not installed",
    )


def _disk(data_dir: Path) -> Finding:
    place = next(path for path in (data_dir, *data_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    seen = f"{free / 1024**3:.1f} GiB free at {place}"
    return Finding(
        "disk",
        free >= DISK_MIN_FREE_BYTES,
        seen,
        f"Models and caches need {DISK_MIN_FREE_BYTES // 1024**3} GiB. Free some disk space.",
    )


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = f"Stop the program that uses the port, or use another one: --port {port + 1}"
            return Finding("port", is_ok=False, seen=f"{port}: {error.strerror}", remedy=remedy)
    return Finding("port", is_ok=True, seen=f"{port} is free")


def _proxy(url: str, seconds: float) -> Finding:
    opener = (
        build_opener(ProxyHandler({}))
        if urlsplit(url).hostname in {"127.0.0.1", "localhost"}
        else build_opener()
    )
    remedy = (
        "Start the proxy (vllm-serverless proxy), or correct --connect (WORKER_CONNECT):"
        " the base URL of the proxy, without /v1."
    )
    try:
        with opener.open(f"{url.rstrip('/')}/livez", timeout=seconds) as answer:
            return Finding(
                "proxy",
                answer.status == HTTPStatus.OK,
                f"{url} answers",
                "Check that this is the URL of the proxy.",
            )
    except (OSError, ValueError, HTTPException) as error:
        return Finding(
            "proxy",
            is_ok=False,
            seen=f"{url}: {_error_text(getattr(error, 'reason', None) or error)}",
            remedy=remedy,
        )


def _worker_token(url: str, endpoint: str, token: str, seconds: float) -> Finding:
    if not token:
        return Finding(
            "worker token",
            is_ok=False,
            seen="no token given",
            remedy="Set WORKER_TOKEN or --token-file to the token that `vllm-serverless token`"
            " prints on the machine of the proxy.",
        )
    parts = urlsplit(url.rstrip("/"))
    scheme = "wss" if parts.scheme == "https" else "ws"
    address = urlunsplit((scheme, parts.netloc, f"{parts.path}/v2/{endpoint}/worker", "", ""))
    headers = {"Authorization": f"Bearer {token}"}
    proxy: Literal[True] | None = None if parts.hostname in {"127.0.0.1", "localhost"} else True
    try:
        with dial(
            address,
            additional_headers=headers,
            open_timeout=seconds,
            close_timeout=seconds,
            proxy=proxy,
        ):
            return Finding("worker token", is_ok=True, seen=f"accepted for endpoint {endpoint}")
    except InvalidStatus as rejected:
        status = rejected.response.status_code
        body = bytes(rejected.response.body or b"").decode(errors="replace")
        seen = f"HTTP {status} {body}"[:RESPONSE_SHOWN_CHARACTERS].strip()
        is_by_proxy = status in WORKER_REJECTED_STATUSES
        remedy = "Check WORKER_TOKEN and WORKER_ENDPOINT." if is_by_proxy else NO_WEBSOCKET
        return Finding("worker token", is_ok=False, seen=seen, remedy=remedy)
    # Sockets, URLs and headers raise different errors.
    except (OSError, ValueError, EOFError, LookupError, WebSocketException) as error:
        return Finding("worker token", is_ok=False, seen=_error_text(error), remedy=NO_WEBSOCKET)


def _error_text(error: object) -> str:
    return str(error)[:RESPONSE_SHOWN_CHARACTERS].strip() or type(error).__name__


def _cards() -> list[str]:
    try:
        listed = subprocess.run(
            NVIDIA_COMMAND,
            capture_output=True,
            text=True,
            timeout=NVIDIA_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        line.partition(" (UUID")[0]
        for line in listed.stdout.splitlines()
        if line.startswith("GPU ")
    ]
