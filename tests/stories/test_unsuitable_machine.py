"""`make up` on an unsuitable machine: one message, exit 78, and nothing is downloaded."""

import asyncio
import os
import shutil
import socket
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from environment import stamp, table
from environment.hardware import Build

ROOT = Path(__file__).parents[2]
OLD = ("2.7", "3.6", "3.8", "3.10")


async def set_up(
    *arguments: str, python: str = sys.executable, **variables: str
) -> tuple[int | None, str]:
    """Run `python scripts/up.py ARGUMENTS`; return its exit status and its output."""
    process = await asyncio.create_subprocess_exec(
        python,
        str(ROOT / "scripts" / "up.py"),
        *arguments,
        env=os.environ | variables,
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, (out + err).decode()


def left_in(folder: Path) -> list[str]:
    """Return the relative paths of all files that a set-up has created."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def old_python(version: str) -> str:
    """Return a Python of this version, from PATH or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    found = str(kept[0]) if kept else shutil.which(f"python{version}")
    return found or pytest.skip(f"needs Python {version}, in PATH or from pyenv")


def linked_environment(home: Path) -> None:
    """Let the set-up find the packages of this Python in another home, as an environment of it."""
    row = table.runtime(Build.CPU, tests=False)
    place = home / row.folder
    place.mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != stamp.NAME:
            (place / path.name).symlink_to(path)
    stamp.write(place, stamp.wanted(ROOT, row))


async def test_usage_lines_of_make_show_make(tmp_path: Path) -> None:
    linked_environment(tmp_path)
    variables = {
        "VLLM_SERVERLESS_BUILD": "cpu",
        "VLLM_SERVERLESS_ENVIRONMENTS": str(tmp_path),
        "VLLM_SERVERLESS_UNCHECKED": "1",
        "PYTHONPATH": str(ROOT),
    }
    status, text = await set_up("--port", "0", "--workers", "many", **variables)
    assert status == 2
    assert 'Usage: make up ARGS="[OPTIONS] [-- VLLM_FLAGS]"' in text
    assert "Try 'make up ARGS=--help' for help." in text


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, text = await set_up("--port", str(port), VLLM_SERVERLESS_ENVIRONMENTS=str(tmp_path))
    assert status == 78
    assert text.startswith(f"set-up: port {port} on 127.0.0.1 is in use by another program.")
    assert text.count("\n") == 1
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("version", OLD)
async def test_an_old_python(version: str) -> None:
    status, text = await set_up(python=old_python(version))
    assert status == 78
    assert text.startswith(f"vllm-serverless needs Python 3.11 to 3.14; this is Python {version} (")
    assert "make up PYTHON=python3.12" in text


async def test_a_machine_without_a_build_of_vllm(tmp_path: Path) -> None:
    none = {"VLLM_SERVERLESS_BUILD": "none", "VLLM_SERVERLESS_ENVIRONMENTS": str(tmp_path)}
    status, text = await set_up("--port", "0", **none)
    assert status == 78
    assert "vLLM cannot be installed here: VLLM_SERVERLESS_BUILD is none." in text
    assert 'make up ARGS="--upstream' in text
    assert left_in(tmp_path) == [".tools", ".tools/lock"]


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs /proc/meminfo")
async def test_too_little_memory(tmp_path: Path) -> None:
    cpu = {"VLLM_SERVERLESS_BUILD": "cpu", "VLLM_SERVERLESS_ENVIRONMENTS": str(tmp_path)}
    status, text = await set_up("--port", "0", "--workers", "9999", **cpu)
    assert status == 78
    assert "of memory are free, and 9999 workers with the smallest model need" in text
    assert left_in(tmp_path) == [".tools", ".tools/lock"]
