"""Rules of the code's structure that the linters cannot check."""

import ast
import re
from pathlib import Path

import pytest

from proxy.jobs.lifecycle import Status

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("proxy/**/*.py"), *ROOT.glob("worker_vllm/**/*.py")])
MAX_FILE_LINES = 400
MAX_BROAD_EXCEPTS = 13
PROXY = [path for path in SOURCES if path.is_relative_to(ROOT / "proxy")]
# Modules that execute or guess the type of their input, form parsers (the proxy has its own), and
# a second HTTP client.
UNSAFE_MODULES = {
    "dill",
    "httpx",
    "jsonpickle",
    "marshal",
    "multipart",
    "pickle",
    "python_multipart",
    "shelve",
    "yaml",
}
UNSAFE_CALLS = {"__import__", "compile", "eval", "exec"}
PATH_METHODS = {
    "chmod",
    "exists",
    "glob",
    "is_dir",
    "is_file",
    "iterdir",
    "mkdir",
    "read_bytes",
    "read_text",
    "rename",
    "resolve",
    "rmdir",
    "stat",
    "touch",
    "unlink",
    "write_bytes",
    "write_text",
}
HASHED_BY_VALUE = {"JobId", "Status", "bytes", "int", "str"}
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|BEGIN|SAVEPOINT|ATTACH)\b")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_only_the_lifecycle_contains_status_names() -> None:
    """Other modules use the members of the enum, so that there is only one table."""
    found = {
        named(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in set(Status)
    }
    assert found <= {"proxy/jobs/lifecycle.py"}


def test_the_environment_is_read_in_two_files() -> None:
    readers = {
        named(path) for path in SOURCES if re.search(r"os\.(environ|getenv)", path.read_text())
    }
    assert readers <= {"proxy/settings.py", "worker_vllm/settings.py"}


def test_vllm_is_imported_in_one_file() -> None:
    imports = re.compile(r"^\s*(from|import) vllm\b", re.MULTILINE)
    importers = {named(path) for path in SOURCES if imports.search(path.read_text())}
    assert len(importers) <= 1


def test_broad_excepts_are_few() -> None:
    broad = [
        named(path)
        for path in SOURCES
        for _ in re.findall(r"except (Base)?Exception\b", path.read_text())
    ]
    assert len(broad) <= MAX_BROAD_EXCEPTS, broad


def test_importing_has_no_side_effects() -> None:
    """No import creates a client, a cache or a thread: module-level calls must be in a list."""
    harmless = {
        "TypeVar",
        "NewType",
        "compile",
        "structlog.get_logger",
        "frozenset",
        "Millis",
        "JobError",
        "Owner",
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
    }
    found = {
        (named(path), ast.unparse(node.value.func))
        for path in SOURCES
        if path.name != "__main__.py"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.Expr | ast.AnnAssign)
        and isinstance(node.value, ast.Call)
    }
    unknown = {
        (path, call)
        for path, call in found
        if call not in harmless and call.split(".")[-1] not in harmless
    }
    assert not {entry for entry in unknown if not entry[1].startswith(("msgspec.", "re."))}


def test_the_core_accesses_files_through_its_disk_only() -> None:
    """Methods of `Path` are only called on a `Disk`.

    The linter (TID251) bans the modules of clock, random numbers and operating system.
    """
    found = {
        f"{named(path)}: {ast.unparse(node)}"
        for path in PROXY
        if path.relative_to(ROOT / "proxy").parts[0] in {"channel", "jobs", "service", "store"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id == "open")
            or (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in PATH_METHODS
                and not ast.unparse(node.func.value).endswith("_disk")
            )
        )
    }
    assert not found


def test_sets_contain_values_instead_of_objects() -> None:
    """A set of objects iterates in the order of memory addresses, which no seed reproduces.

    Use a dict with values of None instead.
    """
    found = {
        f"{named(path)}: {ast.unparse(node)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) in {"set", "frozenset", "WeakSet", "MutableSet"}
        if ast.unparse(node.slice) not in HASHED_BY_VALUE
    }
    assert not found


@pytest.mark.parametrize("path", PROXY, ids=named)
def test_the_proxy_does_not_execute_its_input(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {
        node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not {name.partition(".")[0] for name in imported} & UNSAFE_MODULES
    called = {
        node.func.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & UNSAFE_CALLS


@pytest.mark.parametrize("path", PROXY, ids=named)
def test_values_are_parameters_of_sql_statements(path: Path) -> None:
    """A statement is a constant; it may include module constants and a schema version."""
    inserted = inserted_into_sql(path.read_text())
    assert not [value for value in inserted if not (value.isupper() or "version" in value)]


def test_a_value_in_a_statement_is_found() -> None:
    assert inserted_into_sql("db.execute(f'SELECT * FROM jobs WHERE id = {job_id}')") == ["job_id"]
    assert inserted_into_sql("db.execute('SELECT ' + name)") == ["'SELECT ' + name"]
    assert inserted_into_sql("db.execute('SELECT %s' % name)") == ["'SELECT %s' % name"]
    assert inserted_into_sql("db.execute('SELECT {}'.format(name))") == ["'SELECT {}'.format(name)"]
    assert inserted_into_sql("db.execute('SELECT ?', (name,))") == []


def inserted_into_sql(source: str) -> list[str]:
    """Return the source of each expression that is inserted into a string with SQL keywords."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.JoinedStr(values=parts) if SQL.search(ast.unparse(node)):
                found += [
                    ast.unparse(part.value)
                    for part in parts
                    if isinstance(part, ast.FormattedValue)
                ]
            case ast.BinOp(op=ast.Add() | ast.Mod()) if _is_sql(node.left) or _is_sql(node.right):
                found.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(value=text, attr="format" | "join" | "replace")) if (
                _is_sql(text)
            ):
                found.append(ast.unparse(node))
            case _:
                pass
    return found


def _is_sql(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and SQL.search(node.value) is not None
    )
