"""Measures the time of `make up` from a clone to the first response.

It is compared with vLLM's own server with the same model and flags. In each round a clone is
installed and started twice, alternating with vLLM's server in a second clone that was installed in
the same way. Packages come from uv's cache if they are in it; kernels are compiled and stored in
folders of the round. With --against, a clone of another commit is also measured, from installation
to its first response. On a machine with other load, the processor time until ready is more
meaningful than the elapsed time.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median

from servers import ENGINE, ROOT, VLLM, free_port, here

# A new user has no environment yet.
PYTHON = getattr(sys, "_base_executable", sys.executable)
INSTALL = "from environment.prepare import prepare; prepare(vllm=True, tests=False)"
FLAGS = (
    *(
        "--served-model-name",
        "demo",
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "2048",
        "--enforce-eager",
    ),
    *(
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--exclude-tools-when-tool-choice-none",
    ),
    *(
        "--reasoning-parser",
        "minimax_m3",
        "--structured-outputs-config",
        '{"enable_in_reasoning": true}',
    ),
)
START_SECONDS = 600
BODY = json.dumps(
    {"model": "demo", "messages": [{"role": "user", "content": "What is this?"}]}
).encode()
SET_UP = re.compile(r"^\[\d+/\d+\] (.+?) \.+ ([\d.]+) s(?!.*still running)")
STAGE = re.compile(r"^\[ *([\d.]+) s\] \S+: (\w+)")

Times = dict[str, float]


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a round.

    The cache and the temporary folder are empty, and byte code is written.
    """
    cache = os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache" / "uv")
    for name in ("cache", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    own = {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "UV_CACHE_DIR": cache,
    }
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | own


def clone(folder: Path, commit: str) -> Path:
    """Clone this checkout at a commit."""
    place = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
    subprocess.run(["git", "-C", str(place), "checkout", "--quiet", commit], check=True)
    return place


def ours(place: Path, environ: dict[str, str]) -> Times:
    """Run `make up` until the first response; return the seconds of each stage since its start."""
    port = free_port()
    begun = time.monotonic()
    command = [PYTHON, "scripts/up.py", "--port", str(port), "--data-dir", str(place / ".data")]
    times: Times = {}
    with subprocess.Popen(
        command, cwd=place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as up:
        assert up.stdout is not None  # noqa: S101 - it is a pipe
        set_up_cpu = 0.0
        for line in up.stdout:
            now = time.monotonic() - begun
            if found := SET_UP.match(line):
                times[f"install: {found[1]}"] = float(found[2])
            elif line.startswith("set-up: done"):
                times["installed"] = now
                set_up_cpu = cpu_seconds(up.pid)
            elif (found := STAGE.match(line)) or line.startswith("Ready after"):
                times[f"at {found[2]}" if found else "ready"] = now
            if line.startswith("Ready after"):
                break
        answer(f"http://127.0.0.1:{port}/v1/chat/completions", BODY)
        times["answer"] = time.monotonic() - begun
        times["answer, CPU"] = cpu_seconds(up.pid)
        times["start, CPU"] = times["answer, CPU"] - set_up_cpu
        times["start"] = times["ready"] - times.get("installed", 0.0)
        up.send_signal(signal.SIGINT)
        up.communicate()
    return times


def theirs(place: Path, environ: dict[str, str]) -> Times:
    """Run vLLM's server until it is healthy; return its elapsed seconds and its processor time."""
    port = free_port()
    python = str(place / ".venv" / "bin" / "python")
    command = [
        python,
        "-m",
        VLLM,
        "--model",
        str(place / "worker_vllm" / "demo"),
        *FLAGS,
        "--port",
        str(port),
    ]
    begun = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=place,
        env=environ | ENGINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        answer(f"http://127.0.0.1:{port}/health")
        times = {"start": time.monotonic() - begun, "start, CPU": cpu_seconds(server.pid)}
        server.terminate()
    return times


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and its descendants, including exited ones."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    children = [
        child
        for tasks in Path("/proc").glob(f"{pid}/task/*/children")
        for child in tasks.read_text().split()
    ]
    return own + sum(cpu_seconds(int(child)) for child in children)


def answer(url: str, body: bytes | None = None) -> None:
    """Wait until this URL responds with 200."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - loopback
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(request, timeout=60) as got:  # noqa: S310
                if got.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError(url)


def one_round(folder: Path, commit: str, against: str) -> Times:
    """Clone, install and start all variants once, alternating; return the seconds by name."""
    mine, peer, old = (folder / name for name in ("ours", "theirs", "against"))
    for place in (mine, peer, old):
        place.mkdir()
    begun = time.monotonic()
    here_ = clone(mine, commit)
    cloned = time.monotonic() - begun
    first = ours(here_, environment(mine))
    there = clone(peer, commit)
    subprocess.run(
        [PYTHON, "-c", INSTALL], cwd=there / "scripts", env=environment(peer), check=True
    )
    their_first = theirs(there, environment(peer))
    second = ours(here_, environment(mine))
    their_second = theirs(there, environment(peer))
    times = {f"first {name}": value for name, value in first.items()}
    times |= {f"second {name}": value for name, value in second.items()}
    times |= {
        "clone to answer": cloned + first["answer"],
        "clone to answer, CPU": first["answer, CPU"],
    }
    for name, own, other in (("first", first, their_first), ("second", second, their_second)):
        for unit in ("start", "start, CPU"):
            times[f"vLLM's {name} {unit}"] = other[unit]
            times[f"ratio of the {name} {unit}"] = own[unit] / other[unit]
    if against:
        begun = time.monotonic()
        before = clone(old, against)
        cloned = time.monotonic() - begun
        was = ours(before, environment(old))
        times[f"clone to answer, {against}"] = cloned + was["answer"]
        times[f"clone to answer, {against}, CPU"] = was["answer, CPU"]
    return times


def main() -> None:
    """Print the seconds of every round and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--against", default="", metavar="COMMIT")
    asked = parser.parse_args()
    commit = subprocess.check_output(
        ["git", "-C", str(ROOT), "rev-parse", asked.commit], text=True
    ).strip()
    rounds = []
    for number in range(asked.rounds):
        with tempfile.TemporaryDirectory(prefix="start-") as folder:
            rounds.append(one_round(Path(folder), commit, asked.against))
        print(
            f"round {number + 1}, load {os.getloadavg()[0]:.1f}: {json.dumps(rounds[-1])}",
            flush=True,
        )
    print(here())
    for name in rounds[0]:
        values = [times[name] for times in rounds if name in times]
        print(
            f"{name + ' ':.<56} {median(values):7.2f}  ",
            *(f"{value:.2f}" for value in values),
        )


if __name__ == "__main__":
    main()
