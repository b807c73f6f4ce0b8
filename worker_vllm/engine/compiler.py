"""Decide at a start whether torch compiles kernels.

Torch needs a compiler and Python's headers for that; vLLM itself does not.

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

DISABLE_VARIABLE = "TORCH_COMPILE_DISABLE"
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
REMEDY = (
    "vLLM runs without compiled kernels, which is slower; on Debian: apt install g++ python3-dev"
)
# For each device: the variable that names the compiler, and the commands that are tried without it.
# Torch's inductor calls the first one, and Triton, which compiles for GPUs, any of the others.
COMPILERS = {"cpu": ("CXX", ("g++",)), "gpu": ("CC", ("gcc", "clang", "cc"))}


@dataclass(frozen=True, slots=True)
class Decision:
    """The effect on a start.

    `note` explains to the operator why kernels are not compiled although that was requested.
    """

    disables: bool = False
    forces_eager: bool = False
    note: str = ""


def decide(environ: Mapping[str, str], include: Path, *, is_cpu: bool, is_eager: bool) -> Decision:
    """Disable compiling if vLLM runs eager on a CPU, or if the tools are missing.

    The user's own variable takes precedence. Even an eager vLLM compiles a few small functions of
    its sampler, which costs more than it gains on a CPU.
    """
    if DISABLE_VARIABLE in environ:
        return Decision()
    if is_eager:
        return Decision(disables=is_cpu)
    missing = lacking(environ, include, "cpu" if is_cpu else "gpu")
    if not missing:
        return Decision()
    return Decision(disables=True, forces_eager=True, note=f"{missing} not found: {REMEDY}")


def lacking(environ: Mapping[str, str], include: Path, device: str) -> str:
    """Return the names of the missing tools that torch needs to compile for `device` (cpu, gpu).

    Empty if everything is available.
    """
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
    """Return the variable that makes compiled kernels survive a reboot.

    Torch's own default is the temporary folder. Empty if the user's cache folder is not writable.
    """
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    nearest = next((place for place in (cache, *cache.parents) if place.exists()), cache)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return {}
    return {CACHE_VARIABLE: str(cache / "vllm-serverless" / "kernels")}


def main(device: str) -> int:
    """Print what is missing; return the exit status, which is 1 if something is missing."""
    missing = lacking(read_environment(), include_folder(), device)
    if missing:
        print(f"{missing} not found: {REMEDY}")
        return 1
    print("found, with Python's headers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
