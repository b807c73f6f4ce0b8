"""What the linters cannot say about the shape of the code."""

import ast
import re
from pathlib import Path

import pytest

from proxy.jobs.lifecycle import Status

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("proxy/**/*.py"), *ROOT.glob("worker_vllm/**/*.py")])
LONGEST_FILE = 400
BROAD_EXCEPTS = 12


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_fits_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_only_the_lifecycle_spells_a_status() -> None:
    """Anywhere else a status is a member of the enum, so that no second table can grow."""
    spelled = {
        named(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in set(Status)
    }
    assert spelled <= {"proxy/jobs/lifecycle.py"}


def test_the_environment_is_read_in_two_files() -> None:
    readers = {named(path) for path in SOURCES if re.search(r"os\.(environ|getenv)", path.read_text())}
    assert readers <= {"proxy/settings.py", "worker_vllm/settings.py"}


def test_vllm_is_imported_in_one_file() -> None:
    imports = re.compile(r"^\s*(from|import) vllm\b", re.MULTILINE)
    importers = {named(path) for path in SOURCES if imports.search(path.read_text())}
    assert len(importers) <= 1


def test_broad_excepts_are_few() -> None:
    broad = [named(path) for path in SOURCES for _ in re.findall(r"except (Base)?Exception\b", path.read_text())]
    assert len(broad) <= BROAD_EXCEPTS, broad


def test_importing_does_nothing_at_module_level() -> None:
    """No module makes a client, a cache or a thread when it is imported: calls at module level are of a known few."""
    harmless = {
        *("TypeVar", "NewType", "compile", "structlog.get_logger", "frozenset", "Millis", "JobError", "Owner"),
        *(
            "typer.Typer",
            "Dialect",
            "stored_key",
            "Principal",
            "Route",
            "Row",
            "set",
            "tuple",
            "dict",
            "sorted",
            "range",
            "float",
            "Path",
            "ip_network",
        ),
    }
    found = {
        (named(path), ast.unparse(node.value.func))
        for path in SOURCES
        if path.name != "__main__.py"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.Expr | ast.AnnAssign) and isinstance(node.value, ast.Call)
    }
    unknown = {(path, call) for path, call in found if call not in harmless and call.split(".")[-1] not in harmless}
    assert not {entry for entry in unknown if not entry[1].startswith(("msgspec.", "re."))}
