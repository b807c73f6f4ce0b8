"""The choice of the build of vLLM for this machine: for GPUs, for CPUs, or none."""

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

# Both distributions publish only manylinux_2_28 wheels.
MIN_GLIBC = (2, 28)
ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
# A driver that hangs must not block the set-up.
NVIDIA_SMI_TIMEOUT_SECONDS = 20.0


class Build(StrEnum):
    """A build of vLLM to install."""

    GPU = "gpu"
    CPU = "cpu"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of a machine on which the choice depends."""

    system: str
    architecture: str
    glibc: tuple[int, ...]
    cpu_flags: frozenset[str]
    has_nvidia_gpu: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """A build, and for `Build.NONE` the reason."""

    build: Build
    reason: str = ""


def look() -> Machine:
    """Return the properties of this machine."""
    name, version = platform.libc_ver()
    glibc = tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else ()
    machine = platform.machine().lower()
    return Machine(
        system=platform.system(),
        architecture=ARCHITECTURES.get(machine, machine),
        glibc=glibc,
        cpu_flags=cpu_flags(Path("/proc/cpuinfo")),
        has_nvidia_gpu=has_nvidia_gpu(Path("/")),
    )


def choose(machine: Machine, wish: str | None = None) -> Choice:
    """Return the build for a machine. `wish` (gpu, cpu or none) overrides the detection."""
    if wish:
        try:
            build = Build(wish)
        except ValueError:
            sys.exit(f"VLLM_SERVERLESS_BUILD is {wish!r}; it must be one of {', '.join(Build)}.")
        return Choice(build, "VLLM_SERVERLESS_BUILD is none" if build is Build.NONE else "")
    if machine.system != "Linux":
        return Choice(Build.NONE, f"vLLM is published for Linux, but this is {machine.system}")
    if machine.architecture not in ARCHITECTURES.values():
        return Choice(
            Build.NONE,
            f"vLLM is published for x86-64 and arm64, but this CPU is {machine.architecture}",
        )
    if machine.glibc < MIN_GLIBC:
        found = ".".join(map(str, machine.glibc)) or "another C library"
        needed = ".".join(map(str, MIN_GLIBC))
        return Choice(Build.NONE, f"vLLM needs glibc {needed} or newer, but this is {found}")
    if machine.has_nvidia_gpu:
        return Choice(Build.GPU)
    if machine.architecture == "x86_64" and "avx2" not in machine.cpu_flags:
        return Choice(
            Build.NONE,
            "the machine has no NVIDIA GPU, and its CPU does not support AVX2, which vLLM needs",
        )
    return Choice(Build.CPU)


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the instruction sets of the first CPU: `flags` on x86-64, `Features` on arm64."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def has_nvidia_gpu(root: Path) -> bool:
    """Return True if the kernel driver has a card, or nvidia-smi lists one (needed for WSL)."""
    if (root / "dev/nvidia0").exists() or any((root / "proc/driver/nvidia/gpus").glob("*")):
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listed = subprocess.run(
            [command, "-L"], capture_output=True, timeout=NVIDIA_SMI_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout
