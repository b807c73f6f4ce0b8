"""The decision whether a start compiles kernels, and the folder of compiled kernels."""

from pathlib import Path

import pytest

from worker_vllm.engine.compiler import Decision, decide, kernel_cache, lacking


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Create a folder with a C++ compiler, a C compiler, and Python's headers."""
    for name in ("g++", "gcc", "Python.h"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_a_machine_with_everything_lacks_nothing(tools: Path) -> None:
    for device in ("cpu", "gpu"):
        assert lacking({"PATH": str(tools)}, tools, device) == ""


@pytest.mark.parametrize(
    ("removed", "device", "named"),
    [
        ("g++", "cpu", "C++ compiler (g++)"),
        ("gcc", "gpu", "C compiler (gcc or clang or cc)"),
        ("Python.h", "cpu", "Python's headers"),
        ("Python.h", "gpu", "Python's headers"),
    ],
)
def test_a_missing_tool_is_named(tools: Path, removed: str, device: str, named: str) -> None:
    (tools / removed).unlink()
    assert lacking({"PATH": str(tools)}, tools, device).startswith(named)


def test_both_are_named_at_once(tmp_path: Path) -> None:
    assert lacking({"PATH": str(tmp_path)}, tmp_path, "cpu") == (
        f"C++ compiler (g++) and Python's headers ({tmp_path}/Python.h)"
    )


def test_the_variable_that_names_a_compiler_takes_precedence(tools: Path) -> None:
    own = tools / "own"
    own.touch()
    own.chmod(0o755)
    assert lacking({"PATH": "", "CXX": str(own)}, tools, "cpu") == ""
    assert (
        lacking({"PATH": str(tools), "CXX": "no-such-compiler"}, tools, "cpu")
        == "C++ compiler (no-such-compiler)"
    )


def test_eager_on_a_cpu_never_compiles(tools: Path, tmp_path: Path) -> None:
    for environ in ({"PATH": str(tools)}, {"PATH": ""}):
        assert decide(environ, tools, is_cpu=True, is_eager=True) == Decision(disables=True)


def test_eager_on_a_gpu_is_not_changed(tools: Path) -> None:
    assert decide({"PATH": ""}, tools, is_cpu=False, is_eager=True) == Decision()


@pytest.mark.parametrize("is_cpu", [True, False])
def test_a_start_without_tools_runs_eager_and_reports_it(tools: Path, *, is_cpu: bool) -> None:
    assert decide({"PATH": str(tools)}, tools, is_cpu=is_cpu, is_eager=False) == Decision()
    (tools / "Python.h").unlink()
    without = decide({"PATH": str(tools)}, tools, is_cpu=is_cpu, is_eager=False)
    assert (without.disables, without.forces_eager) == (True, True)
    assert without.note.startswith("Python's headers (")
    assert "apt install g++ python3-dev" in without.note


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_the_users_own_choice_takes_precedence(tmp_path: Path, value: str) -> None:
    environ = {"PATH": "", "TORCH_COMPILE_DISABLE": value}
    assert all(
        decide(environ, tmp_path, is_cpu=True, is_eager=eager) == Decision()
        for eager in (True, False)
    )


def test_kernels_are_kept_in_the_users_cache(tmp_path: Path) -> None:
    assert kernel_cache({}, tmp_path) == {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / ".cache" / "vllm-serverless" / "kernels")
    }
    elsewhere = kernel_cache({"XDG_CACHE_HOME": str(tmp_path / "mine")}, Path("/nowhere"))
    assert elsewhere["TORCHINDUCTOR_CACHE_DIR"] == str(
        tmp_path / "mine" / "vllm-serverless" / "kernels"
    )


def test_without_a_writable_folder_torch_uses_its_own_default(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.touch()
    assert kernel_cache({}, home) == {}
