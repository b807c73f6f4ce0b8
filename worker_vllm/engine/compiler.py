"""Whether torch compiles kernels in this start. It needs a compiler and Python's headers for that; vLLM does not.

`doctor` runs the module as `python -m worker_vllm.engine.compiler cpu`.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker_vllm.settings import read_environment

DISABLE = "TORCH_COMPILE_DISABLE"
CACHE = "TORCHINDUCTOR_CACHE_DIR"
REMEDY = (
    "vLLM runs without compiled kernels, which is slower; on Debian: apt install g++ python3-dev"
)
# torch's inductor calls the first; Triton, which compiles for GPUs, any of the others.
COMPILERS = {"cpu": ("CXX", ("g++",)), "gpu": ("CC", ("gcc", "clang", "cc"))}


@dataclass(frozen=True, slots=True)
class Decision:
    """What a start does about compiling. `note` is for the person who wanted kernels compiled and gets none."""

    disables: bool = False
    forces_eager: bool = False
    note: str = ""


def decide(environ: Mapping[str, str], include: Path, *, is_cpu: bool, is_eager: bool) -> Decision:
    """Compile nothing where vLLM runs eager on a CPU, or where the tools are missing. The user's variable wins.

    An eager vLLM compiles a few small functions of its sampler all the same, which costs more than it gains on a CPU.
    """
    if DISABLE in environ:
        return Decision()
    if is_eager:
        return Decision(disables=is_cpu)
    missing = lacking(environ, include, "cpu" if is_cpu else "gpu")
    if not missing:
        return Decision()
    return Decision(disables=True, forces_eager=True, note=f"{missing} not found: {REMEDY}")


def lacking(environ: Mapping[str, str], include: Path, device: str) -> str:
    """Name what torch needs to compile kernels for `device` (cpu or gpu) and does not find; empty if all is there."""
    variable, usual = COMPILERS[device]
    commands = [environ[variable]] if environ.get(variable) else usual
    path = environ.get("PATH", os.defpath)
    missing = []
    if not any(shutil.which(command, path=path) for command in commands):
        missing.append(f"{'C++' if device == 'cpu' else 'C'} compiler ({' or '.join(commands)})")
    if not (include / "Python.h").is_file():
        missing.append(f"Python's headers ({include}/Python.h)")
    return " and ".join(missing)


def include_folder() -> Path:
    """Return the folder in which torch looks for Python's headers."""
    return Path(sysconfig.get_path("include"))


def kernel_cache(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the variable that keeps compiled kernels over a reboot: torch's own choice is the temporary folder.

    Empty where the user's cache folder cannot be written.
    """
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    nearest = next((place for place in (cache, *cache.parents) if place.exists()), cache)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return {}
    return {CACHE: str(cache / "vllm-serverless" / "kernels")}


def main(device: str) -> int:
    """Print what is missing. Gives the exit status: 1 if something is."""
    missing = lacking(read_environment(), include_folder(), device)
    print(f"{missing} not found: {REMEDY}" if missing else "found, with Python's headers")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
