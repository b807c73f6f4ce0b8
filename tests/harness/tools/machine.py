"""Restricted environments of a machine, for one command and its children."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "c89", "c99", "cpp")


def path_without_compilers(folder: Path) -> str:
    """Return a PATH of one folder with all commands of this machine except compilers.

    Compilers of any version are excluded.
    """
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for tool in Path(place).glob("*"):
            if not _is_compiler(tool.name) and not (folder / tool.name).is_symlink():
                (folder / tool.name).symlink_to(tool)
    assert not [name for name in COMPILERS if shutil.which(name, path=str(folder))]
    return str(folder)


def _is_compiler(name: str) -> bool:
    """Return True for `g++`, and also for `g++-12` and `x86_64-linux-gnu-g++-12`."""
    return any(part in COMPILERS for part in name.split("-"))


def hidden_folder(folder: str) -> tuple[str, ...]:
    """Return a command that executes another one with this folder hidden."""
    way = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder)
    if not Path(folder).is_dir():
        return ()
    try:
        subprocess.run([*way, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root, where it may mount, can hide a folder from a command")
    return way
