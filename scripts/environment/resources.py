"""The free memory and disk space of this machine, or of the container of this process."""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# Without a limit, version 1 of control groups reports a number near 2**63.
NO_LIMIT = 1 << 60
# For each version: the files with the limit and the usage, and the name of the reclaimable memory
# in memory.stat.
FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes that new processes can allocate, within the limits of the container."""
    try:
        text = (proc / "meminfo").read_text(encoding="utf-8")
    except OSError:
        return NO_LIMIT
    sizes = {
        name: int(size) * 1024
        for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)
    }
    free = sizes.get("MemAvailable", NO_LIMIT) + sizes.get("SwapFree", 0)
    return min([free, *_left_in_groups(proc, cgroups)])


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the free bytes of each control group of this process, including reclaimable files."""
    try:
        rows = [
            line.split(":", 2)
            for line in (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
        ]
    except OSError:
        return
    for _, controller, path in (row for row in rows if len(row) == 3):
        if controller not in FILES:
            continue
        limit, usage, reclaimable = FILES[controller]
        root = cgroups / controller
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            maximum = _number(folder / limit, r"^(\d+)$")
            if maximum is not None and maximum < NO_LIMIT:
                used = _number(folder / usage, r"^(\d+)$") or 0
                freeable = _number(folder / "memory.stat", rf"^{reclaimable} (\d+)$") or 0
                yield maximum - used + freeable


def _number(file: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def free_disk(places: Iterable[Path]) -> list[tuple[int, Path]]:
    """Return the free bytes of each disk of these folders, with an existing folder on that disk.

    The folders themselves do not have to exist.
    """
    disks: dict[int, tuple[int, Path]] = {}
    for place in places:
        nearest = next(path for path in (place, *place.absolute().parents) if path.exists())
        disks.setdefault(nearest.stat().st_dev, (shutil.disk_usage(nearest).free, nearest))
    return list(disks.values())
