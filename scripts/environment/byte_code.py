"""Compile the modules that a start imports, on all CPUs, during the installation.

Otherwise the first start compiles them on one CPU. `start_imports.txt` lists the folders of
site-packages that a start uses; `scripts/list_imports.py` writes it. Compiling all packages would
take six times as long, and more disk space.
"""

import compileall
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

LIST = Path(__file__).with_name("start_imports.txt")
# Small enough that the counter of the progress line moves often.
FILES_PER_TASK = 40
# The suffix of a line for a folder with all its subfolders.
WHOLE = "/**"


def compile_imports(place: Path, own: Sequence[Path], report: Callable[[str], None]) -> None:
    """Compile the listed modules of the environment at `place`, and all modules below `own`.

    `report` receives the progress as a text.
    """
    names = LIST.read_text(encoding="utf-8").splitlines()
    files: list[Path] = []
    for packages in place.glob("lib/python*/site-packages"):
        files += listed(packages, names)
    for folder in own:
        files += sorted(folder.rglob("*.py"))
    done = 0
    starts = range(0, len(files), FILES_PER_TASK)
    tasks = [files[start : start + FILES_PER_TASK] for start in starts]
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), initializer=_leave_signals_to_the_parent
    ) as pool:
        try:
            for task in as_completed([pool.submit(_compile, task) for task in tasks]):
                done += task.result()
                report(f"{done} of {len(files)} files")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def listed(packages: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the source files in the named folders. Folders that do not exist are skipped."""
    for name in names:
        folder = packages / name.removesuffix(WHOLE)
        yield from sorted(folder.rglob("*.py") if name.endswith(WHOLE) else folder.glob("*.py"))


def _compile(files: Sequence[Path]) -> int:
    for file in files:
        # Errors are ignored: a start does not need the byte code.
        compileall.compile_file(file, quiet=2)
    return len(files)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
