"""What this machine, or the container that this process runs in, has free."""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # version 1 of control groups writes a number near 2**63 where there is no limit
# Of either version: the files of a limit and of what is used, and in memory.stat the name of what can be given up.
FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes that new processes can have: the machine's, or fewer where a container limits them."""
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
    """What each control group that this process is in has left; files that it can give up count as free."""
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
        limit, used, idle = FILES[controller]
        root = cgroups / controller
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            bounds = _number(folder / limit, r"^(\d+)$")
            if bounds is not None and bounds < NO_LIMIT:
                yield (
                    bounds
                    - (_number(folder / used, r"^(\d+)$") or 0)
                    + (_number(folder / "memory.stat", rf"^{idle} (\d+)$") or 0)
                )


def _number(file: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def free_disk(places: Iterable[Path]) -> list[tuple[int, Path]]:
    """Return the free bytes of each disk that these folders are on, with the folder; they need not be there yet."""
    disks: dict[int, tuple[int, Path]] = {}
    for place in places:
        nearest = next(path for path in (place, *place.absolute().parents) if path.exists())
        disks.setdefault(nearest.stat().st_dev, (shutil.disk_usage(nearest).free, nearest))
    return list(disks.values())
