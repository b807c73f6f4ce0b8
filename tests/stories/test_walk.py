"""The number of modules that one request passes."""

import sys
from subprocess import PIPE, STDOUT, run

from harness.proxy.command import ROOT


def test_a_request_passes_few_modules() -> None:
    """`scripts/walk.py` runs a proxy and a worker, and has the limits."""
    command = [sys.executable, ROOT / "scripts/walk.py", "--list"]
    ended = run(command, check=False, stdout=PIPE, stderr=STDOUT)
    assert ended.returncode == 0, ended.stdout.decode()
