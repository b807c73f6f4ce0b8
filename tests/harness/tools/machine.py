"""A machine that lacks something, for one command and what it starts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "c89", "c99", "cpp")


def path_without_compilers(folder: Path) -> str:
    """Return a PATH of one folder that has every command of this machine but the compilers, whatever their version."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for tool in Path(place).glob("*"):
            if not _is_compiler(tool.name) and not (folder / tool.name).is_symlink():
                (folder / tool.name).symlink_to(tool)
    assert not [name for name in COMPILERS if shutil.which(name, path=str(folder))]
    return str(folder)


def _is_compiler(name: str) -> bool:
    """`g++`, and also `g++-12` and `x86_64-linux-gnu-g++-12`."""
    return any(part in COMPILERS for part in name.split("-"))


def hidden_folder(folder: str) -> tuple[str, ...]:
    """Return a command that goes on as another one, for which this folder is empty."""
    way = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder)
    if not Path(folder).is_dir():
        return ()
    try:
        subprocess.run([*way, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root, where it may mount, can hide a folder from a command")
    return way
