"""The documentation is complete."""

import re
from pathlib import Path

import pytest

from proxy.api.errors import ERRORS
from proxy.settings import Settings as ProxySettings
from worker_vllm.settings import Settings as WorkerSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ProxySettings.model_fields)
def test_every_setting_of_the_proxy_is_documented(name: str) -> None:
    assert f"`PROXY_{name.upper()}`" in (DOCS / "settings.md").read_text()


def test_the_documented_defaults_are_those_of_the_settings() -> None:
    page = (DOCS / "settings.md").read_text()
    rows = re.findall(r"^\| `(PROXY_\w+)` \| (\S+) \|", page, re.MULTILINE)
    documented = {name: "" if default == "-" else default for name, default in rows}
    fields = ProxySettings.model_fields.items()
    defaults = {
        f"PROXY_{name.upper()}": " ".join(map(str, field.default))
        if isinstance(field.default, list | tuple)
        else str(field.default or "")
        for name, field in fields
    }
    assert documented == defaults


@pytest.mark.parametrize("name", WorkerSettings.model_fields)
def test_every_setting_of_a_worker_is_documented(name: str) -> None:
    alias = WorkerSettings.model_fields[name].validation_alias
    assert (
        f"`{alias if isinstance(alias, str) else f'WORKER_{name.upper()}'}`"
        in (DOCS / "worker.md").read_text()
    )


@pytest.mark.parametrize(
    "page",
    [
        *sorted(DOCS.glob("**/*.md")),
        ROOT / "README.md",
        ROOT / "Dockerfile",
        ROOT / "deploy" / "compose.yaml",
    ],
    ids=lambda page: page.name,
)
def test_examples_do_not_pass_secrets_as_arguments(page: Path) -> None:
    """`--api-key KEY` and `--env PROXY_API_KEY=KEY` are visible in the process list."""
    examples = [
        line
        for line in page.read_text().splitlines()
        if "vllm-serverless" in line or "docker" in line
    ]
    flags = re.compile(r"--(api-key|worker-token|token)[ =]|(--env|-e)[ =]\w*(KEY|TOKEN)=")
    assert not [line for line in examples if flags.search(line)]


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_is_documented(code: str) -> None:
    assert f"`{code}`" in (DOCS / "errors.md").read_text()


@pytest.mark.parametrize(
    "page",
    [*sorted(DOCS.glob("**/*.md")), ROOT / "README.md", ROOT / "SECURITY.md"],
    ids=lambda page: page.name,
)
def test_links_have_existing_targets(page: Path) -> None:
    for target in [part.partition(")")[0] for part in page.read_text().split("](")[1:]]:
        if not target.startswith("http"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_flow_control_names_constants_that_exist() -> None:
    page = (DOCS / "flow-control.md").read_text()
    found = re.findall(r"`((?:proxy|worker_vllm)/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", page)
    names = [(path, name) for path, names in found for name in re.findall(r"[\w.]+", names)]
    assert len(names) > 20
    missing = [
        f"{path}: {name}"
        for path, name in names
        if not re.search(rf"\b{name.partition('.')[2] or name}\b", (ROOT / path).read_text())
    ]
    assert not missing


def test_the_tests_of_the_promises_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).is_file()] == []
