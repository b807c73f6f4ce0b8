"""Byte code that the installation makes, so that the first start need not."""

import importlib.util
import sys
from pathlib import Path

from environment import byte_code


def written(path: Path, text: str = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def is_compiled(file: Path) -> bool:
    return Path(importlib.util.cache_from_source(str(file))).exists()


def test_only_listed_folders_are_compiled_and_the_progress_is_reported(tmp_path: Path) -> None:
    place, own = tmp_path / ".venv", tmp_path / "own"
    packages = place / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    first, *names = byte_code.LIST.read_text(encoding="utf-8").splitlines()
    named = written(packages / first.removesuffix(byte_code.WHOLE) / "named.py")
    broken = written(named.with_name("broken.py"), "def\n")
    other = written(packages / "no-such-package" / "other.py")
    ours = written(own / "deep" / "ours.py")
    said: list[str] = []
    byte_code.compile_imports(place, [own], said.append)
    assert [is_compiled(file) for file in (named, broken, other, ours)] == [
        True,
        False,
        False,
        True,
    ]
    assert said[-1] == "3 of 3 files"
    assert names


def test_a_folder_is_taken_alone_or_with_all_below_it(tmp_path: Path) -> None:
    for name in ("a/one.py", "a/below/two.py", "b/three.py", "b/below/four.py", "b/data.txt"):
        written(tmp_path / name)
    found = byte_code.listed(tmp_path, ["a", "b/**", "absent", "absent/**"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a/one.py",
        "b/below/four.py",
        "b/three.py",
    ]


def test_the_list_fits_what_is_installed() -> None:
    """Most of it is there with vLLM; without vLLM nothing can be said."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        return
    packages = Path(vllm.origin).parents[1]
    names = byte_code.LIST.read_text(encoding="utf-8").splitlines()
    there = [name for name in names if (packages / name.removesuffix(byte_code.WHOLE)).is_dir()]
    assert len(there) >= 0.95 * len(names), "run scripts/list_imports.py"
