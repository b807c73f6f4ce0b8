"""The uv of this checkout: brought through pip, or through pip's wheel where Python has no pip."""

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
    "uv comes from pip's package index: check that `python3 -m pip download uv` works, "
    "or set index-url (and cert, proxy) in pip's configuration or as PIP_INDEX_URL."
)

NO_PIP_HINT = (
    "Install pip (on Debian: apt install python3-pip), or name a package index in pip's configuration "
    "or as PIP_INDEX_URL, from which it can be brought."
)


class Uv:
    """A pinned uv under the tools directory and the variables it runs with."""

    def __init__(self, tools: Path, pins: Path, environ: Mapping[str, str]) -> None:
        self._tools = tools
        self._pins = pins
        self._environ = environ
        files = pip_settings.config_files(environ, Path.home(), Path(sys.prefix))
        self.settings: PipSettings = pip_settings.read(environ, files)
        self.command = str(tools / "uv" / "bin" / "uv")
        self.version = pinned_version(pins)

    def is_here(self) -> bool:
        """Whether the pinned version was brought before."""
        return (self._tools / "uv" / f"uv-{self.version}.dist-info").is_dir() and os.access(
            self.command, os.X_OK
        )

    def bring(self, stages: Stages) -> None:
        """Install uv under the tools directory; what is there is whole, for it moves there in one step."""
        self._tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._tools, prefix="partial-") as partial:
            folder = Path(partial)
            pip = (
                ["-m", "pip"]
                if importlib.util.find_spec("pip")
                else [str(self._pip_wheel(folder) / "pip")]
            )
            flags = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
            places = ["--requirement", str(self._pins), "--target", str(folder / "uv")]
            # The first two settings forbid --target, which touches neither the system's Python nor the user's.
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
        """The caller's environment, what pip knows about indexes, and no surprises."""
        told = pip_settings.for_uv(
            self.settings, self._environ, system_certificates=_has_system_certificates()
        )
        fixed = {"UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
        own = {
            name: value
            for name, value in self._environ.items()
            if name not in {"VIRTUAL_ENV", "UV_PYTHON"}
        }
        return {**own, "UV_CACHE_DIR": str(self.cache()), **told, **fixed}

    def cache(self) -> Path:
        """Return the folder of uv's downloads: its own choice, or one beside uv without a home to write to."""
        if named := self._environ.get("UV_CACHE_DIR"):
            return Path(named)
        home = Path(self._environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        nearest = next((place for place in (home, *home.parents) if place.exists()), Path("/"))
        return home / "uv" if os.access(nearest, os.W_OK | os.X_OK) else self._tools / "cache"


def pinned_version(pins: Path) -> str:
    """The version that requirements/uv.txt pins."""
    found = re.search(r"^uv==(\S+)", pins.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"{pins}: no line pins uv.")
    return found[1]


def _has_system_certificates() -> bool:
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath) if paths.capath else None
    return bool(paths.cafile) or (folder is not None and any(folder.glob("*.0")))
