"""`make audit`: query an advisory service for every package that a lock pins.

Exit status: 0 clean, 1 vulnerable, 2 the audit could not be made.

pip-audit skips packages that it cannot look up, and can therefore report "clean" without a query.
Each run thus includes a release with published advisories, which must be reported, and every given
package must appear in the report.
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
# CVE-2013-7459 and CVE-2018-6594. The package is abandoned, so none of our locks will ever name it.
CANARY = ("pycrypto", "2.6.1")
# One run makes a few hundred queries in sequence.
RUN_TIMEOUT_SECONDS = 600
SOCKET_TIMEOUT_SECONDS = 15
CLEAN = 0
VULNERABLE = 1
NOT_AUDITED = 2

Pin = tuple[str, str]
"""The name and the version of a release."""


class NotAuditedError(Exception):
    """The audit could not be made, or its result cannot be trusted; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A pinned release with a known vulnerability."""

    pin: Pin
    advisory: str
    fixed_in: tuple[str, ...]


def pins(lock: str) -> list[Pin]:
    """Return the releases that a lock pins, without the label of a local build (`+cpu`)."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;+]+)", lock, re.MULTILINE)
    return [(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found]


def runs_of(wanted: Iterable[Pin]) -> list[list[Pin]]:
    """Split the pins into runs with each package once, and add the canary to each run."""
    runs: list[dict[str, str]] = []
    for name, version in sorted(set(wanted)):
        run = next((one for one in runs if name not in one), None)
        if run is None:
            run = {}
            runs.append(run)
        run[name] = version
    return [[*run.items(), CANARY] for run in runs]


def findings(report: str, wanted: Iterable[Pin]) -> list[Finding]:
    """Return the findings of a report, without the canary.

    Raises NotAuditedError if the report does not contain every wanted pin and the canary's
    advisory.
    """
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
        raise NotAuditedError("the tool did not print a valid report") from error
    if skipped := sorted(set(wanted) - answered.keys()):
        raise NotAuditedError(
            f"the report does not contain {', '.join('=='.join(pin) for pin in skipped)}"
        )
    if not answered[CANARY]:
        raise NotAuditedError(
            f"{'=='.join(CANARY)} has a published advisory, but it was not reported"
        )
    return [finding for finding in found if finding.pin != CANARY]


def query(tool: str, service: str, wanted: Sequence[Pin]) -> str:
    """Run the tool for one set of pins, and return its JSON report. Raises NotAuditedError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(
            "".join(f"{name}=={version}\n" for name, version in wanted), encoding="utf-8"
        )
        flags = ["--strict", "--no-deps", "--disable-pip", "--format=json"]
        flags += ["--progress-spinner=off", "--vulnerability-service=osv"]
        flags += [f"--osv-url={service}", f"--timeout={SOCKET_TIMEOUT_SECONDS}"]
        try:
            ended = subprocess.run(
                [tool, *flags, "--requirement", str(file)],
                capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotAuditedError(str(error)) from error
    if not ended.stdout.strip():
        last = (ended.stderr.strip() or f"exit {ended.returncode}").splitlines()[-1]
        raise NotAuditedError(f"{service} did not answer: {last}")
    return ended.stdout


def main() -> None:
    """Audit the locks, print the findings and exit."""
    parser = argparse.ArgumentParser(prog="audit", description=__doc__)
    parser.add_argument(
        "locks", nargs="*", type=Path, help="locks to audit (default: all of requirements/)"
    )
    parser.add_argument(
        "--service", default=SERVICE, metavar="URL", help="an OSV service (default: %(default)s)"
    )
    parser.add_argument(
        "--tool", metavar="COMMAND", help="pip-audit to run (default: it is installed)"
    )
    options = parser.parse_args()
    locks = {
        path.name: pins(path.read_text("utf-8"))
        for path in options.locks or sorted(REQUIREMENTS.glob("*.txt"))
    }
    wanted = sorted(set().union(*locks.values()))
    tool = options.tool or str(Path(prepare_one(AUDIT)).with_name("pip-audit"))
    found: list[Finding] = []
    try:
        for run in runs_of(wanted):
            found += findings(query(tool, options.service, run), run)
    except NotAuditedError as error:
        print(f"audit: failed, which does not mean clean: {error}", file=sys.stderr)
        sys.exit(NOT_AUDITED)
    for finding in found:
        places = ", ".join(name for name, pinned in locks.items() if finding.pin in pinned)
        fixed = " or ".join(finding.fixed_in) or "no release yet"
        print(f"{'=='.join(finding.pin)} ({places}): {finding.advisory}, fixed in {fixed}")
    number = len({finding.pin for finding in found})
    print(f"audit: {len(wanted)} pinned releases in {len(locks)} locks, {number} vulnerable")
    sys.exit(VULNERABLE if found else CLEAN)


if __name__ == "__main__":
    main()
