"""Write scripts/environment/start_imports.txt, the modules that a start of the demo imports.

Run it after an update of vLLM. It starts the demo with an empty folder for its byte code; the files
in that folder are then the modules that were imported.
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

# From this imported share on, a whole tree becomes one line of the list.
TREE_MIN_SHARE = 0.8
# Below this imported share, compiling a folder takes more time than it saves.
FOLDER_MIN_SHARE = 0.5


def main() -> None:
    """Start the demo, and write the list of what it imported."""
    python = Path(prepare(vllm=True, tests=False))
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    with tempfile.TemporaryDirectory() as folder:
        _start(python, Path(folder))
        made = Path(folder, "code").rglob("*.pyc")
        base = Path(folder, "code", *packages.parts[1:])
        imported = {_source(path, base) for path in made if path.is_relative_to(base)}
    lines = sorted(set(_folders(packages, packages, imported)))
    LIST.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{LIST.relative_to(ROOT)}: {len(imported)} modules in {len(lines)} lines")


def _source(byte_code: Path, base: Path) -> str:
    """Return the path of the source file, relative to site-packages (`base` in the byte code)."""
    name = byte_code.name.partition(".")[0] + ".py"
    return str(byte_code.relative_to(base).with_name(name))


def _start(python: Path, folder: Path) -> None:
    """Run `up` until it is ready; its byte code and its data are below `folder`."""
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "code")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    place = ["--port", "0", "--data-dir", str(folder / "data")]
    command = [str(python), "-m", "proxy.cli", "up", *place]
    with subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None  # noqa: S101 - it is a pipe
        if not any(line.startswith("Ready after") for line in up.stdout):
            sys.exit("The demo did not start.")
        up.send_signal(signal.SIGINT)
        up.communicate()


def _folders(folder: Path, packages: Path, imported: set[str]) -> Iterator[str]:
    """Yield the lines of the list for one folder and the folders below it."""
    name = str(folder.relative_to(packages))
    below = [str(path.relative_to(packages)) for path in folder.rglob("*.py")]
    hits = sum(path in imported for path in below)
    if not hits:
        return
    if folder != packages and hits / len(below) >= TREE_MIN_SHARE:
        yield name + WHOLE
        return
    own = [str(path.relative_to(packages)) for path in folder.glob("*.py")]
    if own and sum(path in imported for path in own) / len(own) >= FOLDER_MIN_SHARE:
        yield name
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from _folders(child, packages, imported)


if __name__ == "__main__":
    main()
