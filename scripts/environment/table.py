"""The environments of a checkout: the runtime of `make up`, and those of clients for tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .hardware import Build

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ".venv"
# The folder of the lock of aider. It is not in `requirements`, because aider pins all of its
# dependencies itself: an audit could find vulnerable releases, but not replace them.
AIDER_FILES = "tests/clients/aider"


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder of packages, and the locks from which it is installed (paths in the checkout).

    Environments beside the runtime (`is_beside`) are for tests only. With `has_project`, the code
    of the checkout is installed in editable mode. `title` is the title of the stage. `npm_files` is
    the folder of `package.json` and `package-lock.json` for npm packages, and empty for Python's.
    """

    folder: str
    title: str
    locks: tuple[str, ...]
    build: Build = Build.NONE
    has_project: bool = False
    is_beside: bool = True
    npm_files: str = ""

    @property
    def proof(self) -> str:
        """The path below the folder that exists if the environment does."""
        return "node_modules" if self.npm_files else "bin/python"


def _npm(folder: str, title: str, files: str) -> Environment:
    return Environment(folder, title, (f"{files}/package-lock.json",), npm_files=files)


AUDIT = Environment(
    ".venv-audit", "for audits: pip-audit, cyclonedx-bom", ("requirements/audit.txt",)
)
# vLLM and the newest runpod require incompatible versions of FastAPI.
SDK = Environment(
    ".venv-sdk", "for tests: Runpod's SDK", ("requirements/sdk.txt",), has_project=True
)
BESIDE = (
    SDK,
    Environment(
        ".venv-runpod2",
        "for tests: Runpod's SDK 2",
        ("requirements/runpod2.txt",),
        has_project=True,
    ),
    Environment(".venv-openai1", "for tests: openai 1", ("requirements/openai1.txt",)),
    Environment(".venv-openai2", "for tests: openai 2", ("requirements/openai2.txt",)),
    _npm(".node", "for tests: npm packages", "tests/clients/node"),
    _npm(".node-codex", "for tests: Codex", "tests/clients/codex"),
    _npm(".node-qwen", "for tests: Qwen Code", "tests/clients/qwen"),
    Environment(".venv-aider", "for tests: aider", (f"{AIDER_FILES}/requirements.txt",)),
    AUDIT,
)
# The peers of benchmarks, which only `make bench` and `make bench-quick` install. Their locks are
# not in `requirements` for the reason that aider's is not.
PEER_FILES = "benchmarks/peers"
VLLM_ROUTER = Environment(
    ".venv-vllm-router",
    "for benchmarks: vllm-router",
    (f"{PEER_FILES}/vllm-router/requirements.txt",),
)
LITELLM = Environment(
    ".venv-litellm", "for benchmarks: LiteLLM", (f"{PEER_FILES}/litellm/requirements.txt",)
)


def runtime(build: Build, *, tests: bool) -> Environment:
    """Return the row of the runtime: the proxy, the worker, and vLLM unless `build` is NONE."""
    title = {
        Build.CPU: "packages, vLLM for CPU",
        Build.GPU: "packages, vLLM for GPU",
        Build.NONE: "packages",
    }[build]
    names = ["cpu" if build is Build.CPU else "base"]
    if tests:
        names.append("test")
    return Environment(
        folder=RUNTIME,
        title=title + (", test tools" if tests else ""),
        locks=tuple(f"requirements/{name}.txt" for name in names),
        build=build,
        has_project=True,
        is_beside=False,
    )


def home(environ: Mapping[str, str]) -> Path:
    """Return the folder of all environments: VLLM_SERVERLESS_ENVIRONMENTS, or the checkout."""
    return Path(environ.get("VLLM_SERVERLESS_ENVIRONMENTS") or ROOT).resolve()
