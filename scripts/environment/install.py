"""The installation of one environment of the table."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from . import byte_code, node, packages, stamp
from .console import Stages, UnavailableError
from .table import ROOT, RUNTIME, Environment
from .uv import Uv

BYTE_CODE = "byte code of the start"


def is_current(row: Environment, home: Path) -> bool:
    """Return True if the environment of a row is complete and up to date."""
    place = home / row.folder
    found = stamp.read(place)
    want = stamp.wanted(ROOT, row)
    return stamp.is_usable(place / row.proof, found, want) and stamp.is_current(found, want)


def install(
    row: Environment, home: Path, uv: Uv, environ: Mapping[str, str], stages: Stages
) -> None:
    """Install the environment of a row, as a stage.

    Packages are added to the runtime if it is usable, because it is large. The other environments
    are recreated, so that they are exact.
    """
    place = home / row.folder
    found = stamp.read(place)
    want = stamp.wanted(ROOT, row)
    is_kept = not row.is_beside and stamp.is_usable(place / row.proof, found, want)
    kept_locks = found.locks if found and is_kept else {}
    with stages.stage(row.title):
        if not is_kept:
            shutil.rmtree(place, ignore_errors=True)
            if row.npm_files:
                place.mkdir()
            else:
                packages.make(place, uv, stages)
        stamp.write(place, replace(want, is_whole=False))
        try:
            if row.npm_files:
                node.fill(row.npm_files, place, home / RUNTIME, environ, stages)
            else:
                packages.fill(row, place, uv, stages)
        except UnavailableError:
            # The tests must not find an incomplete environment.
            shutil.rmtree(place)
            raise
        stamp.write(place, replace(want, locks=kept_locks | want.locks))
    if not row.is_beside:
        with stages.stage(BYTE_CODE):
            byte_code.compile_imports(
                place, [ROOT / "proxy", ROOT / "worker_vllm"], stages.progress
            )
