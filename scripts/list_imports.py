"""Write scripts/environment/start_imports.txt: what a start of the demo imports. To be run after vLLM has changed.

The demo is started with its byte code in an empty folder, so what is there afterwards was imported.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from environment.byte_code import LIST, WHOLE
from environment.prepare import prepare
from environment.table import ROOT

MOSTLY = 0.8  # of a whole tree: it becomes one line
ENOUGH = 0.5  # of one folder: with a smaller part imported it is not worth its time


def main() -> None:
    """Start the demo, note what it imports, and write the list."""
    python = Path(prepare(vllm=True, tests=False))
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    with tempfile.TemporaryDirectory() as folder:
        _start(python, Path(folder))
        made = Path(folder, "code").rglob("*.pyc")
        base = Path(folder, "code", *packages.parts[1:])
        imported = {str(path.relative_to(base).with_name(path.name.partition(".")[0] + ".py")) for path in made
                    if path.is_relative_to(base)}  # fmt: skip
    lines = sorted(set(_folders(packages, packages, imported)))
    LIST.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{LIST.relative_to(ROOT)}: {len(imported)} modules in {len(lines)} lines")


def _start(python: Path, folder: Path) -> None:
    """Run `up` until it is ready."""
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "code")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [
        str(python),
        "-m",
        "proxy.cli",
        "up",
        "--port",
        "0",
        "--data-dir",
        str(folder / "data"),
    ]
    with subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None  # noqa: S101 - it is a pipe
        if not any(line.startswith("Ready after") for line in up.stdout):
            sys.exit("The demo did not start.")
        up.send_signal(signal.SIGINT)
        up.communicate()


def _folders(folder: Path, packages: Path, imported: set[str]) -> Iterator[str]:
    """Yield the lines for one folder and those below it."""
    name = str(folder.relative_to(packages))
    below = [str(path.relative_to(packages)) for path in folder.rglob("*.py")]
    hits = sum(path in imported for path in below)
    if not hits:
        return
    if folder != packages and hits / len(below) >= MOSTLY:
        yield name + WHOLE
        return
    own = [str(path.relative_to(packages)) for path in folder.glob("*.py")]
    if own and sum(path in imported for path in own) / len(own) >= ENOUGH:
        yield name
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from _folders(child, packages, imported)


if __name__ == "__main__":
    main()
