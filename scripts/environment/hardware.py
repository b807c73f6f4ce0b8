"""Which build of vLLM fits this machine: a GPU's, the CPU's, or none."""

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

LEAST_GLIBC = (2, 28)  # both distributions publish manylinux_2_28 wheels only
ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
NVIDIA_SMI_TIMEOUT_S = 20.0  # a wedged driver must not hang the set-up


class Build(StrEnum):
    """A build of vLLM to install."""

    GPU = "gpu"
    CPU = "cpu"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice depends on."""

    system: str
    architecture: str
    glibc: tuple[int, ...]
    cpu_flags: frozenset[str]
    has_nvidia_gpu: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """A build, and the reason where there is none."""

    build: Build
    reason: str = ""


def look() -> Machine:
    """Describe the machine we are on."""
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
    """The build for a machine; `wish` (gpu, cpu or none) overrules what was found."""
    if wish:
        try:
            return Choice(Build(wish), "" if wish != Build.NONE else "none was asked for")
        except ValueError:
            sys.exit(f"VLLM_SERVERLESS_BUILD is {wish!r}; it must be one of {', '.join(Build)}.")
    if machine.system != "Linux":
        return Choice(Build.NONE, f"vLLM is published for Linux, and this is {machine.system}")
    if machine.architecture not in ARCHITECTURES.values():
        return Choice(
            Build.NONE,
            f"vLLM is published for x86-64 and arm64, and this CPU is {machine.architecture}",
        )
    if machine.glibc < LEAST_GLIBC:
        found = ".".join(map(str, machine.glibc)) or "another C library"
        return Choice(
            Build.NONE,
            f"vLLM needs glibc {'.'.join(map(str, LEAST_GLIBC))} or newer, and this is {found}",
        )
    if machine.has_nvidia_gpu:
        return Choice(Build.GPU)
    if machine.architecture == "x86_64" and "avx2" not in machine.cpu_flags:
        return Choice(
            Build.NONE,
            "there is no NVIDIA GPU, and vLLM on x86-64 CPUs needs AVX2, which this CPU lacks",
        )
    return Choice(Build.CPU)


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """The instruction sets of the first CPU: `flags` on x86-64, `Features` on arm64."""
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
    """Whether the kernel driver shows a card, or nvidia-smi lists one (WSL has only that)."""
    if (root / "dev/nvidia0").exists() or any((root / "proc/driver/nvidia/gpus").glob("*")):
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listed = subprocess.run(
            [command, "-L"], capture_output=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout
