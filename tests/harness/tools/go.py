"""Clients in Go: built where `go` and the modules they need can be had; without them the test is not run."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

FETCH_SECONDS = 20.0  # one small module; a proxy that cannot be reached must not hold up everything
BUILD_SECONDS = 240.0  # the first build on a machine also compiles the standard library's HTTP
SAID_CHARACTERS = 300  # of why it failed
ALONE = {
    "GOFLAGS": "-mod=mod",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}  # no other Go is fetched for it


def go_client(source: Path, place: Path) -> str:
    """Build the client of this folder, outside the repository; the program."""
    if shutil.which("go") is None:
        pytest.skip("go is not in PATH: apt-get install golang-go")
    folder = Path(shutil.copytree(source, place / source.name))
    status, said = _go(folder, FETCH_SECONDS, "mod", "download")
    if status != 0:
        pytest.skip(
            f"the Go module github.com/runpod/go-sdk/pkg/sdk cannot be had: set GOPROXY to one that has it{said}"
        )
    status, said = _go(folder, BUILD_SECONDS, "build", "-o", "client", ".")
    assert status == 0, said
    return str(folder / "client")


def _go(folder: Path, seconds: float, *arguments: str) -> tuple[int, str]:
    """Run `go`, with all that it starts; its status and the last line it said."""
    command = ("go", *arguments)
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | ALONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return process.returncode, f" (no answer within {seconds:g} s)"
    return (
        process.returncode,
        f" ({said.strip().splitlines()[-1][:SAID_CHARACTERS]})" if said.strip() else "",
    )
