"""A partial interpreter of Dockerfiles, which runs them without Docker in a folder as the root."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]


@dataclass
class Stage:
    """The instructions of one stage, in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        """Return the arguments of the last instruction of this name."""
        return [rest for instruction, rest in self.instructions if instruction == name][-1]

    def words(self, name: str) -> list[str]:
        """Return the words of the last instruction of this name with a JSON array."""
        found: list[str] = yaml.safe_load(self[name][self[name].index("[") :])
        return found


def read(path: Path = ROOT / "Dockerfile") -> dict[str, Stage]:
    """Return the stages by name."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    stage = Stage("")
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            base, _, called = rest.partition(" AS ")
            stage = stages[called] = Stage(base)
        elif name:
            stage.instructions.append((name, rest.strip()))
    return stages


@dataclass
class Machine:
    """A folder as the root of the machine that an image describes."""

    root: Path
    stages: dict[str, Stage]

    def environment(self, name: str) -> dict[str, str]:
        """Return the variables of a stage, with paths below the root of this machine."""
        stage = self.stages[name]
        known = (
            self.environment(stage.base) if stage.base in self.stages else {"PATH": self._path()}
        )
        for instruction, rest in stage.instructions:
            if instruction == "ENV":
                for word in shlex.split(rest):
                    key, _, value = word.partition("=")
                    known[key] = self.expand(
                        f"{self.root}{value}" if value.startswith("/") else value, known
                    )
        return known

    def expand(self, text: str, variables: dict[str, str]) -> str:
        """Return the text with its variables replaced."""
        return re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], text)

    def build(self, name: str) -> None:
        """Execute the COPY and RUN instructions of a stage and of its base stages."""
        stage = self.stages[name]
        if stage.base in self.stages:
            self.build(stage.base)
        for instruction, rest in stage.instructions:
            if instruction == "COPY":
                *sources, target = rest.split()
                place = self._folder(name) / target
                for source in sources:
                    self._copy(
                        ROOT / source, place / source if (ROOT / source).is_file() else place
                    )
            elif instruction == "RUN":
                self._run(rest, name)

    def _folder(self, name: str) -> Path:
        """Return the working directory of a stage."""
        stage = self.stages[name]
        given = [rest for instruction, rest in stage.instructions if instruction == "WORKDIR"]
        folder = (
            Path(self.expand(given[-1], self.environment(name)))
            if given
            else self._folder(stage.base)
        )
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_file():
            shutil.copy(source, target)
        else:
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )

    def _run(self, command: str, name: str) -> None:
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("VIRTUAL_ENV", "PYTHON"))
        }
        env = inherited | self.environment(name)
        ended = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self._folder(name),
            env=env,
            capture_output=True,
            check=False,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout.decode()}{ended.stderr.decode()}"

    def _path(self) -> str:
        """Return this machine's PATH, starting with the Python that created this environment."""
        return f"{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}"

    def files(self, place: str) -> Iterator[tuple[str, Any]]:
        """Yield every file of a folder and its modification time."""
        for path in sorted((self.root / place).rglob("*")):
            yield str(path), path.lstat().st_mtime_ns
