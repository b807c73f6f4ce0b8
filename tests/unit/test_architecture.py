"""What the linters cannot say about the shape of the code."""

import ast
import re
from pathlib import Path

import pytest

from proxy.jobs.lifecycle import Status

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("proxy/**/*.py"), *ROOT.glob("worker_vllm/**/*.py")])
LONGEST_FILE = 400
BROAD_EXCEPTS = 9
PROXY = [path for path in SOURCES if path.is_relative_to(ROOT / "proxy")]
# They run what they read, or guess what it is; forms are looked into by our own code, and one client is enough.
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
    *(
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
    ),
    *("rmdir", "stat", "touch", "unlink", "write_bytes", "write_text"),
}
HASHED_BY_VALUE = {"JobId", "Status", "bytes", "int", "str"}
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|BEGIN|SAVEPOINT|ATTACH)\b")


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
        f"{named(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    ]
    assert len(broad) <= BROAD_EXCEPTS, broad


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & {"Exception", "BaseException"})


def test_importing_does_nothing_at_module_level() -> None:
    """No module makes a client, a cache or a thread when it is imported: calls at module level are of a known few."""
    harmless = {
        *(
            "TypeVar",
            "NewType",
            "compile",
            "structlog.get_logger",
            "frozenset",
            "Millis",
            "JobError",
            "Owner",
        ),
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
        if isinstance(node, ast.Assign | ast.Expr | ast.AnnAssign)
        and isinstance(node.value, ast.Call)
    }
    unknown = {
        (path, call)
        for path, call in found
        if call not in harmless and call.split(".")[-1] not in harmless
    }
    assert not {entry for entry in unknown if not entry[1].startswith(("msgspec.", "re."))}


def test_the_core_touches_no_file_but_through_its_disk() -> None:
    """The linter (TID251) keeps clock, chance and operating system away; the methods of a path are for this test."""
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


def test_sets_hold_values_not_objects() -> None:
    """Sets of objects iterate in the order of memory addresses, which no seed repeats. Use a dict of None instead."""
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
def test_the_proxy_runs_nothing_that_it_reads(path: Path) -> None:
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
def test_values_come_into_sql_as_parameters_only(path: Path) -> None:
    """A statement is a constant; what an f-string puts into one is a constant of the module, or a schema's version."""
    assert not [
        put for put in put_into_sql(path.read_text()) if not (put.isupper() or "version" in put)
    ]


def test_a_value_in_a_statement_would_be_found() -> None:
    assert put_into_sql("db.execute(f'SELECT * FROM jobs WHERE id = {job_id}')") == ["job_id"]
    assert put_into_sql("db.execute('SELECT ' + name)") == ["'SELECT ' + name"]
    assert put_into_sql("db.execute('SELECT %s' % name)") == ["'SELECT %s' % name"]
    assert put_into_sql("db.execute('SELECT {}'.format(name))") == ["'SELECT {}'.format(name)"]
    assert put_into_sql("db.execute('SELECT ?', (name,))") == []


def put_into_sql(source: str) -> list[str]:
    """What is put into text that looks like a statement, as the source has it."""
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
