"""docs/clients.md has the configuration and the versions that the tests use."""

import json
import re
from pathlib import Path
from typing import Any

from harness.agents import aider, codex, qwen

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
BASE_URL = "http://127.0.0.1:8000/v1"


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def version_of(program: str) -> str:
    """Return the version in the lock of a program."""
    files = ROOT / "tests" / "clients" / program
    if (lock := files / "requirements.in").exists():
        return lock.read_text(encoding="utf-8").strip().partition("==")[2]
    wanted = json.loads((files / "package.json").read_text(encoding="utf-8"))["dependencies"]
    [version] = wanted.values()
    return str(version)


def test_the_versions_are_those_of_the_locks() -> None:
    rows = dict(
        re.findall(r"^\| (?:Codex|Qwen Code|aider) \(`(.*?)`\) \| (\S+) ", PAGE, re.MULTILINE)
    )
    assert rows == {
        "@openai/codex": version_of("codex"),
        "@qwen-code/qwen-code": version_of("qwen"),
        "aider-chat": version_of("aider"),
    }


def test_the_configuration_of_codex() -> None:
    assert blocks("toml") == [codex.CONFIG.format(base_url=BASE_URL, more="")]


def test_the_configuration_of_qwen_code_and_aider() -> None:
    settings: dict[str, Any] = qwen.SETTINGS | {"model": {"generationConfig": qwen.TIMERS}}
    assert [json.loads(block) for block in blocks("json")] == [settings, aider.METADATA]


def test_the_flags_of_aider() -> None:
    shown = re.search(r"^aider (?:.*\\\n)*.*$", PAGE, re.MULTILINE)
    assert shown is not None
    assert set(aider.FLAGS) <= set(shown[0].split())
