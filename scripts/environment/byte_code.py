"""Byte code for what a start imports, made by all CPUs during the installation: else the first start makes it by one.

`start_imports.txt` names the folders of site-packages of which a start imports much; `scripts/list_imports.py` writes
it.
Compiling everything would take six times as long, and more disk.
"""

import compileall
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

LIST = Path(__file__).with_name("start_imports.txt")
AT_ONCE = 40  # files in one task: few enough for a counter that moves
WHOLE = "/**"  # after a folder's name: with all below it


def compile_imports(place: Path, own: Sequence[Path], say: Callable[[str], None]) -> None:
    """Compile what a start imports from the environment at `place` and from our `own` folders. `say` hears how far."""
    names = LIST.read_text(encoding="utf-8").splitlines()
    files = [
        *(
            file
            for packages in place.glob("lib/python*/site-packages")
            for file in listed(packages, names)
        ),
        *(file for folder in own for file in sorted(folder.rglob("*.py"))),
    ]
    done = 0
    tasks = [files[begin : begin + AT_ONCE] for begin in range(0, len(files), AT_ONCE)]
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), initializer=_leave_signals_to_the_parent
    ) as pool:
        try:
            for task in as_completed([pool.submit(_compile, task) for task in tasks]):
                done += task.result()
                say(f"{done} of {len(files)} files")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def listed(packages: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the sources in the folders that are named; one that this installation lacks is passed over."""
    for name in names:
        folder = packages / name.removesuffix(WHOLE)
        yield from sorted(folder.rglob("*.py") if name.endswith(WHOLE) else folder.glob("*.py"))


def _compile(files: Sequence[Path]) -> int:
    for file in files:
        compileall.compile_file(
            file, quiet=2
        )  # what does not compile, or cannot be written, a start can do without
    return len(files)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
