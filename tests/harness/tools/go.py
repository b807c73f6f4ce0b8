"""The build of clients in Go. Without `go` or their modules, the test is skipped."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

# The timeout for one small module, so that an unreachable module proxy does not block the tests.
FETCH_TIMEOUT_SECONDS = 20.0
# The first build on a machine also compiles the standard library's HTTP.
BUILD_TIMEOUT_SECONDS = 240.0
REASON_MAX_CHARACTERS = 300
# No other version of Go is downloaded.
ISOLATED = {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def go_client(source: Path, place: Path) -> str:
    """Build the client of a folder outside the repository, and return the path of the program."""
    if shutil.which("go") is None:
        pytest.skip("go is not in PATH: apt-get install golang-go")
    folder = Path(shutil.copytree(source, place / source.name))
    status, reason = _go(folder, FETCH_TIMEOUT_SECONDS, "mod", "download")
    if status != 0:
        pytest.skip(
            "the Go module github.com/runpod/go-sdk/pkg/sdk is not available: set GOPROXY to one"
            f" that has it{reason}"
        )
    status, reason = _go(folder, BUILD_TIMEOUT_SECONDS, "build", "-o", "client", ".")
    assert status == 0, reason
    return str(folder / "client")


def _go(folder: Path, seconds: float, *arguments: str) -> tuple[int, str]:
    """Run `go` in a process group of its own; return its status and the last line of its output."""
    command = ("go", *arguments)
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | ISOLATED, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return process.returncode, f" (no answer within {seconds:g} s)"
    lines = output.strip().splitlines()
    reason = f" ({lines[-1][:REASON_MAX_CHARACTERS]})" if lines else ""
    return process.returncode, reason
