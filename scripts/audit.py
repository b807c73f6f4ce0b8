"""`make audit`: ask an advisory service about every package that a lock pins. Exit: 0 clean, 1 vulnerable, 2 not asked.

The tool can say "clean" without having asked: it passes over what it cannot look up. So a release with published
advisories is asked about in the same run and has to be reported, and so has every package that was given.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from environment.prepare import prepare_one
from environment.table import AUDIT, ROOT

REQUIREMENTS = ROOT / "requirements"
SERVICE = "https://api.osv.dev/v1/query"
CANARY = (
    "pycrypto",
    "2.6.1",
)  # CVE-2013-7459 and CVE-2018-6594; abandoned, so no lock of ours will ever name it
ASK_SECONDS = 600  # for one run: a few hundred questions, one after the other
SOCKET_SECONDS = 15
CLEAN, VULNERABLE, NOT_ASKED = 0, 1, 2

Pin = tuple[str, str]  # name and version


class NotAskedError(Exception):
    """The audit could not be made, or cannot be trusted; the text says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A pinned release with a known vulnerability."""

    pin: Pin
    advisory: str
    fixed_in: tuple[str, ...]


def pins(lock: str) -> list[Pin]:
    """What a lock pins, whatever the platform. No service knows a local build (`+cpu`): its release is asked about."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;+]+)", lock, re.MULTILINE)
    return [(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found]


def rounds(wanted: Iterable[Pin]) -> list[list[Pin]]:
    """The pins in as many runs as a package has releases, for the tool wants each once; the canary is in each run."""
    made: list[dict[str, str]] = []
    for name, version in sorted(set(wanted)):
        free = next((one for one in made if name not in one), None)
        if free is None:
            free = {}
            made.append(free)
        free[name] = version
    return [[*one.items(), CANARY] for one in made]


def findings(report: str, wanted: Iterable[Pin]) -> list[Finding]:
    """What a report says, without the canary; `NotAskedError` where it is not about everything wanted."""
    try:
        entries = [
            entry for entry in json.loads(report)["dependencies"] if "skip_reason" not in entry
        ]
        answered = {(entry["name"], entry["version"]): entry["vulns"] for entry in entries}
        found = [
            Finding(pin, vulnerability["id"], tuple(vulnerability["fix_versions"]))
            for pin, vulnerabilities in answered.items()
            for vulnerability in vulnerabilities
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise NotAskedError("the tool gave no report") from error
    if passed_over := sorted(set(wanted) - answered.keys()):
        raise NotAskedError(
            f"nothing was said about {', '.join('=='.join(pin) for pin in passed_over)}"
        )
    if not answered[CANARY]:
        raise NotAskedError(
            f"{'=='.join(CANARY)} has a published advisory, and it was not reported"
        )
    return [finding for finding in found if finding.pin != CANARY]


def ask(tool: str, service: str, wanted: Sequence[Pin]) -> str:
    """Run the tool over one round; its report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(
            "".join(f"{name}=={version}\n" for name, version in wanted), encoding="utf-8"
        )
        flags = [
            "--strict",
            "--no-deps",
            "--disable-pip",
            "--format",
            "json",
            "--progress-spinner",
            "off",
        ]
        where = [
            "--vulnerability-service",
            "osv",
            "--osv-url",
            service,
            "--timeout",
            str(SOCKET_SECONDS),
        ]
        try:
            ended = subprocess.run(
                [tool, *flags, *where, "--requirement", str(file)],
                capture_output=True, text=True, check=False, timeout=ASK_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotAskedError(str(error)) from error
    if not ended.stdout.strip():
        last = (ended.stderr.strip() or f"exit {ended.returncode}").splitlines()[-1]
        raise NotAskedError(f"{service} gave no answer: {last}")
    return ended.stdout


def main() -> None:
    """Ask about all locks, and say what was found."""
    parser = argparse.ArgumentParser(prog="audit", description=__doc__)
    parser.add_argument(
        "locks", nargs="*", type=Path, help="locks to audit; all of requirements/ without any"
    )
    parser.add_argument(
        "--service", default=SERVICE, metavar="URL", help="an OSV service (default: %(default)s)"
    )
    parser.add_argument(
        "--tool", metavar="COMMAND", help="the pip-audit to run, instead of installing it"
    )
    told = parser.parse_args()
    locks = {
        path.name: pins(path.read_text("utf-8"))
        for path in told.locks or sorted(REQUIREMENTS.glob("*.txt"))
    }
    wanted = sorted({pin for pinned in locks.values() for pin in pinned})
    tool = told.tool or str(Path(prepare_one(AUDIT)).with_name("pip-audit"))
    try:
        found = [
            finding
            for one in rounds(wanted)
            for finding in findings(ask(tool, told.service, one), one)
        ]
    except NotAskedError as error:
        print(f"audit: could not be made, which does not mean clean: {error}", file=sys.stderr)
        sys.exit(NOT_ASKED)
    for finding in found:
        places = ", ".join(name for name, pinned in locks.items() if finding.pin in pinned)
        fixed = " or ".join(finding.fixed_in) or "no release yet"
        print(f"{'=='.join(finding.pin)} ({places}): {finding.advisory}, fixed in {fixed}")
    number = len({finding.pin for finding in found})
    print(f"audit: {len(wanted)} pinned releases in {len(locks)} locks, {number} vulnerable")
    sys.exit(VULNERABLE if found else CLEAN)


if __name__ == "__main__":
    main()
