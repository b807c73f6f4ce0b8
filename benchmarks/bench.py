"""Compare this project with its peers in one run; `make bench` and `make bench-quick` call it.

    .venv/bin/python benchmarks/bench.py [ROW ...]
    .venv/bin/python benchmarks/bench.py --quick [--accept]

Without rows it measures all that are not optional, and writes one JSON file for each, a table and
a plot to `benchmarks/results`. With `--quick` it measures three rows for three tries, and exits
with status 1 if a ratio is above 1.5 times the committed one in the best try; `--accept` writes the
ratios to be committed, as does the first run. See README.md.
"""

import argparse
import asyncio
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# The imports follow the change of the path, to use this repository and not an installed package.
from suite import machine, results, rounds  # noqa: E402
from suite.generator import LoadError, compile_programs  # noqa: E402
from suite.model import Rig, Row  # noqa: E402
from suite.processes import StartError  # noqa: E402
from suite.quick import ratios, regressions  # noqa: E402
from suite.rows import QUICK, ROWS  # noqa: E402

QUICK_TRIES = 3
CORES = 2
# Above what a row itself leaves behind.
BUSY_LOAD = 2.5


def main() -> None:
    """Parse the arguments, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="only the rows a, c and ten")
    parser.add_argument("--accept", action="store_true", help="write the ratios of --quick")
    parser.add_argument("--rounds", type=int, help="rounds (default: those of each row)")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    options = parser.parse_args()
    if options.list:
        for row in ROWS:
            print(f"{row.name:<12} {row.title} ({row.worker})")
        return
    if len(os.sched_getaffinity(0)) < CORES:
        sys.exit("The benchmark needs two cores: one for the server, and one for the load.")
    known = {row.name: row for row in ROWS}
    unknown = [name for name in options.rows if name not in known]
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = [known[name] for name in options.rows] or [r for r in ROWS if not r.is_optional]
    # Otherwise the servers would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environments = Path(os.environ.get("VLLM_SERVERLESS_ENVIRONMENTS") or ROOT).resolve()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        # The worker process of nginx may run as another user.
        folder.chmod(0o755)
        rig = Rig(folder, *compile_programs(folder), environments)
        if options.quick:
            sys.exit(asyncio.run(quick(rig, accept=options.accept)))
        sys.exit(asyncio.run(full(rig, chosen, options.rounds)))


async def full(rig: Rig, chosen: list[Row], number: int | None) -> int:
    """Measure rows, and write each result as soon as it is complete. Return the exit status.

    The other rows are measured if one fails.
    """
    command = f"python {shlex.join(sys.argv)}"
    failed = []
    for row in chosen:
        started = time.monotonic()
        load = _load()
        try:
            found = await rounds.measure(rig, row, number or row.rounds, say)
        except (StartError, LoadError) as error:
            say(f"{row.name} failed: {error}")
            failed.append(row.name)
            continue
        result = results.summary(row, found, machine.place(command), load)
        results.write(results.FOLDER, result, machine.versions(rig))
        say(f"{row.name}: {time.monotonic() - started:.0f} s")
        print(results.text(result), flush=True)
    if failed:
        say(f"Failed rows: {', '.join(failed)}")
    return 1 if failed else 0


async def quick(rig: Rig, *, accept: bool) -> int:
    """Measure three rows, and compare them with the committed ratios. Return the exit status."""
    started = time.monotonic()
    command = f"python {shlex.join(sys.argv)}"
    found: dict[str, list[float]] = {}
    rows = []
    for row in QUICK:
        load = _load()
        measured = await rounds.measure(rig, row, QUICK_TRIES, say)
        found |= ratios(row, measured.rounds)
        rows.append(results.summary(row, measured, machine.place(command), load))
        print(results.text(rows[-1]), flush=True)
    committed = results.committed_ratios(results.FOLDER)
    say(f"{time.monotonic() - started:.0f} s")
    if accept or committed is None:
        results.write_quick(results.FOLDER, rows, found, machine.versions(rig))
        return 0
    bad = regressions(found, committed)
    print("\n".join(bad) if bad else "No ratio is above the tolerance.")
    return 1 if bad else 0


def _load() -> float:
    """Return the load average of the last minute, and warn if other work distorts the results."""
    load = machine.load()
    if load > BUSY_LOAD:
        say(f"The load average is {load:.1f}: other work, or the last row, distorts the results.")
    return load


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
