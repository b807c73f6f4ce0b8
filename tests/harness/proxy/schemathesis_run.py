"""schemathesis as a process.

It reads the proxy's OpenAPI description, and sends valid and invalid requests.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[2]
# The maximum number of characters of its output that are shown after a failure.
SHOWN = 4_000
CONFORMS = (
    *("status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "unsupported_method", "allow_header_conformance"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and the status of its response; 0 if there was none."""

    phase: str
    method: str
    path: str
    status: int


@dataclass(frozen=True, slots=True)
class Asking:
    """The requests of a run, the number of failed checks, and the output."""

    requests: tuple[Asked, ...]
    failures: int
    code: int
    text: str


async def ask_all(
    source: str, url: str, folder: Path, *options: str, checks: tuple[str, ...] = CONFORMS
) -> Asking:
    """Test the description at `source`, a file or a URL.

    The same options always lead to the same requests.
    """
    if find_spec("schemathesis") is None:
        pytest.skip("needs schemathesis: `make test` brings it with the test tools")
    events = folder / "events.ndjson"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("run", source, "--url", url, "--checks", ",".join(checks)),
        *("--generation-deterministic", "--continue-on-failure", "--no-color", "--warnings", "off"),
        *("--report", "ndjson", "--report-ndjson-path", str(events), *options),
        cwd=folder, stdout=PIPE, stderr=STDOUT,
        env=environ
        | {"SCHEMATHESIS_HOOKS": "harness.proxy.schemathesis_hooks", "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = printed.decode(errors="replace")[-SHOWN:]
    assert events.exists(), text
    scenarios = list(_scenarios(events))
    return Asking(
        requests=tuple(one for scenario in scenarios for one in _asked(scenario)),
        failures=sum(
            check["status"] == "failure" for scenario in scenarios for check in _checks(scenario)
        ),
        code=int(process.returncode or 0),
        text=text,
    )


def _scenarios(events: Path) -> Iterator[dict[str, Any]]:
    with events.open() as lines:
        for line in lines:
            if (found := json.loads(line).get("ScenarioFinished")) is not None:
                yield found


def _asked(scenario: dict[str, Any]) -> Iterator[Asked]:
    recorder = scenario["recorder"]
    for name, interaction in recorder.get("interactions", {}).items():
        case = recorder["cases"][name]["value"]
        status = (interaction.get("response") or {"status_code": 0})["status_code"]
        yield Asked(scenario["phase"], case["method"], case["path"], status)


def _checks(scenario: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in scenario["recorder"].get("checks", {}).values():
        yield from found
