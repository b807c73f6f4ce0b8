"""The environments of a checkout, a row each: what `make up` runs in, and those of other clients for the tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .hardware import Build

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ".venv"
NODE_FILES = "tests/clients/node"


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder of packages, and the locks it is made from. Those beside the runtime are for tests only."""

    folder: str
    title: str  # of its stage
    locks: tuple[str, ...]  # paths in the checkout
    build: Build = Build.NONE
    has_project: bool = False  # the checkout's own code, editable
    is_beside: bool = True
    is_npm: bool = False

    @property
    def proof(self) -> str:
        """What is there when the environment is."""
        return "node_modules" if self.is_npm else "bin/python"


AUDIT = Environment(
    ".venv-audit", "for audits: pip-audit, cyclonedx-bom", ("requirements/audit.txt",)
)
BESIDE = (
    # vLLM and the newest runpod ask for FastAPIs that exclude each other.
    Environment(
        ".venv-sdk", "for tests: Runpod's SDK", ("requirements/sdk.txt",), has_project=True
    ),
    Environment(".venv-openai1", "for tests: openai 1", ("requirements/openai1.txt",)),
    Environment(".venv-openai2", "for tests: openai 2", ("requirements/openai2.txt",)),
    Environment(
        ".node", "for tests: npm packages", (f"{NODE_FILES}/package-lock.json",), is_npm=True
    ),
    AUDIT,
)


def runtime(build: Build, *, tests: bool) -> Environment:
    """The first environment: the proxy, the worker and vLLM where this machine has a build of it."""
    title = {
        Build.CPU: "packages, vLLM for CPU",
        Build.GPU: "packages, vLLM for GPU",
        Build.NONE: "packages",
    }[build]
    lock = "cpu" if build is Build.CPU else "base"
    return Environment(
        folder=RUNTIME,
        title=title + (", test tools" if tests else ""),
        locks=tuple(f"requirements/{name}.txt" for name in (lock, *(["test"] if tests else []))),
        build=build,
        has_project=True,
        is_beside=False,
    )


def home(environ: Mapping[str, str]) -> Path:
    """The folder that all of them are in."""
    return Path(environ.get("VLLM_SERVERLESS_ENVIRONMENTS") or ROOT).resolve()
