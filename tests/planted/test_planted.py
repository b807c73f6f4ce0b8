"""The tests find the bugs that are planted for them.

Each patch in this folder plants one bug. Those named `undone` undo the fix of a fault that this
code once had, those named `classic` are typical faults of queues. The line `Finder` names the test
that has to fail: a file, or `simulation` for the simulation alone, where a number is the first seed
to try.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.load.figures import tell

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COPIED = ("proxy", "worker_vllm", "tests", "scripts", "pyproject.toml")
SIMULATION = "simulation"
FIND_SECONDS = 60.0
# Beyond the search: the start of Python, and its imports.
START_SECONDS = 20.0

if shutil.which("git") is None:
    pytest.skip("git is not in PATH: apt-get install git", allow_module_level=True)


@dataclass(frozen=True)
class Bug:
    """A patch of the code, and the test that finds it."""

    patch: Path

    @property
    def finder(self) -> str:
        lines = self.patch.read_text().splitlines()
        return next(line.removeprefix("Finder: ") for line in lines if line.startswith("Finder: "))

    @property
    def is_simulated(self) -> bool:
        """True if the simulation alone finds the bug."""
        return self.finder.startswith(SIMULATION)

    def apply(self, folder: Path, *options: str) -> None:
        """Apply the patch to a copy of the code, or only check it."""
        command = ["git", "apply", *options, str(self.patch)]
        # Without its repository, the folder is not a part of another one.
        environment = os.environ | {"GIT_DIR": os.devnull}
        subprocess.run(command, cwd=folder, env=environment, check=True)


BUGS = [Bug(patch) for patch in sorted(HERE.glob("*.patch"))]
each_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.patch.stem)


@each_bug
def test_a_patch_still_applies(bug: Bug) -> None:
    bug.apply(ROOT, "--check")
    assert bug.is_simulated or (ROOT / bug.finder).exists()


def test_the_number_of_bugs() -> None:
    names = [bug.patch.name for bug in BUGS]
    assert sum(name.startswith("undone") for name in names) == 14
    assert sum(name.startswith("classic") for name in names) == 10
    assert sum(bug.is_simulated for bug in BUGS) >= 10


@pytest.mark.torture
@pytest.mark.timeout(FIND_SECONDS * 3)
@each_bug
async def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    bug.apply(tmp_path)
    begun = asyncio.get_running_loop().time()
    output = await _find(bug, tmp_path)
    seconds = asyncio.get_running_loop().time() - begun
    tell(bug.patch.stem, round(seconds, 1), f"found within {FIND_SECONDS:g} s", "s")
    assert output, "the bug was not found"
    assert seconds <= FIND_SECONDS
    if bug.is_simulated:
        seed = re.search(r"^seed (\d+): ", output, re.MULTILINE)
        assert seed, output
        # The same seed has no violation without the bug.
        assert await _run(ROOT, "tests/sim/replay.py", seed[1]) == (0, "")


async def _find(bug: Bug, folder: Path) -> str:
    """Run the finder of a bug in a copy of the code; return its output if it failed."""
    seed = bug.finder.removeprefix(SIMULATION).strip() or "0"
    search = ("tests/sim/replay.py", seed, "--search", str(FIND_SECONDS))
    options = ("-q", "-x", "-p", "no:cacheprovider", "-m", "not torture")
    test = ("-m", "pytest", *options, bug.finder)
    status, output = await _run(folder, *(search if bug.is_simulated else test))
    return output if status == 1 else ""


async def _run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run Python with the code in a folder; return its status, and its output if that is not 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests")])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), FIND_SECONDS + START_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        return -1, ""
    status = process.returncode or 0
    return status, output.decode(errors="replace") if status else ""
