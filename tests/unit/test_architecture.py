"""Rules of the code's structure that the linters cannot check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.jobs import model
from proxy.jobs.lifecycle import Status
from proxy.wire import sse

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("proxy/**/*.py"), *ROOT.glob("worker_vllm/**/*.py")])
MAX_FILE_LINES = 400
MAX_BROAD_EXCEPTS = 8
MAX_IGNORED_TYPES = 5
MAX_COLLABORATORS = 6
# Parameters of these types are values, not collaborators.
VALUES = {"OutputFormat", "bool", "bytes", "float", "int", "str"}
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
# Imported when they are first needed; most proxies never need them.
LATE_MODULES = {"aiohttp", "cryptography", "openai", "pydantic.v1"}
COMPOSE = """
import sys
from pathlib import Path
from proxy.app import compose
from proxy.cli import commands
from proxy.settings import Settings
compose(Settings(port=0, data_dir=Path(sys.argv[1])))
print(*sys.modules)
"""
HASHED_BY_VALUE = {"JobId", "Status", "bytes", "int", "str"}
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|BEGIN|SAVEPOINT|ATTACH)\b")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> list[ast.AST]:
    """Return all nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_only_the_lifecycle_contains_status_names() -> None:
    """Other modules use the members of the enum, so that there is only one table."""
    names = set(Status)

    def contains_status(path: Path) -> bool:
        return any(isinstance(node, ast.Constant) and node.value in names for node in nodes(path))

    found = {named(path) for path in SOURCES if contains_status(path)}
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
        f"{named(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]
    assert len(broad) <= MAX_BROAD_EXCEPTS, broad


def test_a_constructor_takes_few_collaborators() -> None:
    found = {
        f"{named(path)}:{node.lineno}": collaborators(node)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    }
    assert not {place: number for place, number in found.items() if number > MAX_COLLABORATORS}


def collaborators(constructor: ast.FunctionDef) -> int:
    """Return the number of parameters that are not plain values."""
    given = constructor.args
    types = [
        ast.unparse(one.annotation)
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        if one.annotation is not None
    ]
    return sum(not VALUES.issuperset(kind.split(" | ")) for kind in types)


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Return True if a handler catches every exception."""
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & {"Exception", "BaseException"})


def test_ignored_types_are_few() -> None:
    ignored = [
        f"{named(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "# type: ignore" in line
    ]
    assert len(ignored) <= MAX_IGNORED_TYPES, ignored


def test_values_that_two_layers_need_agree() -> None:
    """`jobs` may not import `wire`."""
    assert model.EVENT_STREAM == sse.EVENT_STREAM


def test_importing_has_no_side_effects() -> None:
    """No import creates a client, a cache or a thread: module-level calls must be in a list."""
    harmless = {
        "TypeVar",
        "NewType",
        "compile",
        "structlog.get_logger",
        "struct.Struct",
        "frozenset",
        "Millis",
        "JobError",
        "RunEnd",
        "Verdict",
        "render_fields",
        "Owner",
        "typer.Typer",
        "Dialect",
        "stored_key",
        "Principal",
        "OpenAiRoute",
        "Row",
        "set",
        "tuple",
        "dict",
        "sorted",
        "range",
        "float",
        "ForeignErrors",
        "Path",
        "ip_network",
    }
    unknown: set[str] = set()
    for path in SOURCES:
        if path.name == "__main__.py":
            continue
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.Assign | ast.Expr | ast.AnnAssign):
                continue
            if not isinstance(node.value, ast.Call):
                continue
            call = ast.unparse(node.value.func)
            if call.startswith(("msgspec.", "re.")):
                continue
            if call not in harmless and call.split(".")[-1] not in harmless:
                unknown.add(f"{named(path)}: {call}")
    assert not unknown


def test_the_core_accesses_files_through_its_disk_only() -> None:
    """Methods of `Path` are only called on a `Disk`.

    The linter (TID251) bans the modules of clock, random numbers and operating system.
    """
    found: set[str] = set()
    for path in PROXY:
        layer = path.relative_to(ROOT / "proxy").parts[0]
        if layer in {"channel", "jobs", "service", "store"}:
            accesses = [node for node in nodes(path) if is_file_access(node)]
            found |= {f"{named(path)}: {ast.unparse(node)}" for node in accesses}
    assert not found


def is_file_access(node: ast.AST) -> bool:
    """Return True for a call of `open`, or of a method of a path on anything but a disk."""
    match node:
        case ast.Call(func=ast.Name(id="open")):
            return True
        case ast.Call(func=ast.Attribute(value=value, attr=method)):
            return method in PATH_METHODS and not ast.unparse(value).endswith("_disk")
        case _:
            return False


def test_sets_contain_values_instead_of_objects() -> None:
    """A set of objects iterates in the order of memory addresses, which no seed reproduces.

    Use a dict with values of None instead.
    """
    found: set[str] = set()
    for path in SOURCES:
        sets = [node for node in nodes(path) if is_set_of_objects(node)]
        found |= {f"{named(path)}: {ast.unparse(node)}" for node in sets}
    assert not found


def is_set_of_objects(node: ast.AST) -> bool:
    """Return True for a set type whose elements are not hashed by value."""
    if not isinstance(node, ast.Subscript):
        return False
    if ast.unparse(node.value) not in {"set", "frozenset", "WeakSet", "MutableSet"}:
        return False
    return ast.unparse(node.slice) not in HASHED_BY_VALUE


@pytest.mark.parametrize("path", PROXY, ids=named)
def test_the_proxy_does_not_execute_its_input(path: Path) -> None:
    imported: set[str] = set()
    called: set[str] = set()
    for node in nodes(path):
        match node:
            case ast.Import(names=aliases):
                imported |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                imported.add(module)
            case ast.Call(func=ast.Name(id=name)):
                called.add(name)
            case _:
                pass
    assert not {name.partition(".")[0] for name in imported} & UNSAFE_MODULES
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


def test_a_proxy_starts_without_the_libraries_of_rare_features(tmp_path: Path) -> None:
    """They would take 20 MB, of the 67 MB of an idle proxy."""
    command = (sys.executable, "-c", COMPOSE, str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "proxy.app" in loaded
    assert not loaded & LATE_MODULES
