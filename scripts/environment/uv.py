"""The uv of this checkout, installed with pip, or with pip's wheel if Python has no pip."""

import importlib.util
import os
import re
import shutil
import ssl
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import pip_settings, simple_index
from .console import Stages
from .pip_settings import PipSettings

HINT = (
    "uv is installed from pip's package index. Check that `python3 -m pip download uv` works, "
    "or set index-url (and cert, proxy) in pip's configuration or as PIP_INDEX_URL."
)

NO_PIP_HINT = (
    "Install pip (on Debian: apt install python3-pip), or set a package index that has it in pip's "
    "configuration or as PIP_INDEX_URL."
)


class Uv:
    """A pinned uv in the tools directory, and the environment variables with which it runs."""

    def __init__(self, tools: Path, pins: Path, environ: Mapping[str, str]) -> None:
        self._tools = tools
        self._pins = pins
        self._environ = environ
        files = pip_settings.config_files(environ, Path.home(), Path(sys.prefix))
        self.settings: PipSettings = pip_settings.read(environ, files)
        self.command = str(tools / "uv" / "bin" / "uv")
        self.version = pinned_version(pins)

    def is_installed(self) -> bool:
        """Return True if the pinned version is in the tools directory."""
        metadata = self._tools / "uv" / f"uv-{self.version}.dist-info"
        return metadata.is_dir() and os.access(self.command, os.X_OK)

    def install(self, stages: Stages) -> None:
        """Install uv in the tools directory, atomically: a complete folder is moved there."""
        self._tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._tools, prefix="partial-") as partial:
            folder = Path(partial)
            pip = ["-m", "pip"]
            if importlib.util.find_spec("pip") is None:
                pip = [str(self._pip_wheel(folder) / "pip")]
            flags = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
            places = ["--requirement", str(self._pins), "--target", str(folder / "uv")]
            # If set, the first two would forbid --target, which changes no installation of Python.
            quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
            env = {**self._environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", **quiet}
            stages.run([sys.executable, *pip, "install", *flags, *places], env, HINT)
            shutil.rmtree(self._tools / "uv", ignore_errors=True)
            (folder / "uv").rename(self._tools / "uv")

    def _pip_wheel(self, folder: Path) -> Path:
        try:
            return simple_index.fetch_pip(
                self.settings, sys.version_info[1], folder, simple_index.bundled_wheels()
            )
        except (OSError, simple_index.PipUnavailableError) as error:
            sys.exit(
                f"\nThis Python has no pip, and no wheel of it was found:\n{error}\n\n{NO_PIP_HINT}"
            )

    def env(self) -> dict[str, str]:
        """Return the caller's environment with pip's package sources and fixed settings, for uv."""
        from_pip = pip_settings.for_uv(
            self.settings, self._environ, system_certificates=_has_system_certificates()
        )
        fixed = {"UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
        own = {
            name: value
            for name, value in self._environ.items()
            if name not in {"VIRTUAL_ENV", "UV_PYTHON"}
        }
        return {**own, "UV_CACHE_DIR": str(self.cache()), **from_pip, **fixed}

    def cache(self) -> Path:
        """Return uv's cache folder: its default, or one beside uv if the home is not writable."""
        if named := self._environ.get("UV_CACHE_DIR"):
            return Path(named)
        home = Path(self._environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        nearest = next((place for place in (home, *home.parents) if place.exists()), Path("/"))
        return home / "uv" if os.access(nearest, os.W_OK | os.X_OK) else self._tools / "cache"


def pinned_version(pins: Path) -> str:
    """Return the version that requirements/uv.txt pins."""
    found = re.search(r"^uv==(\S+)", pins.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"{pins} does not pin uv. Run `make lock`.")
    return found[1]


def _has_system_certificates() -> bool:
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath) if paths.capath else None
    return bool(paths.cafile) or (folder is not None and any(folder.glob("*.0")))
