"""Time from a clone to the first response of `make up`, compared with vLLM's own server.

Both use the same model and flags. In each round a clone is installed and started twice, in turns
with vLLM's server in a second clone that is installed in the same way. Packages come from uv's
cache if they are in it; compiled kernels are stored in folders of the round. With --against, a
clone of another commit is also measured, from the clone to its first response.
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

# The interpreter outside of any virtual environment, as before the first installation.
PYTHON = getattr(sys, "_base_executable", sys.executable)
INSTALL = "from environment.prepare import prepare; prepare(vllm=True, tests=False)"
FLAGS = (
    "--served-model-name=demo",
    "--dtype=bfloat16",
    "--max-model-len=2048",
    "--enforce-eager",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--exclude-tools-when-tool-choice-none",
    "--reasoning-parser=minimax_m3",
    '--structured-outputs-config={"enable_in_reasoning": true}',
)
START_SECONDS = 600
BODY = json.dumps(
    {"model": "demo", "messages": [{"role": "user", "content": "What is this?"}]}
).encode()
SET_UP = re.compile(r"^\[\d+/\d+\] (.+?) \.+ ([\d.]+) s(?!.*still at it)")
STAGE = re.compile(r"^\[ *([\d.]+) s\] \S+: (\w+)")

Times = dict[str, float]


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of one round: empty cache and temporary folders, byte code enabled."""
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
    """Clone this repository at a commit; return the folder of the clone."""
    place = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
    subprocess.run(["git", "-C", str(place), "checkout", "--quiet", commit], check=True)
    return place


def ours(place: Path, environ: dict[str, str]) -> Times:
    """Run `make up` until the first response; return the seconds from the start to each stage."""
    port = free_port()
    began = time.monotonic()
    command = [PYTHON, "scripts/up.py", "--port", str(port), "--data-dir", str(place / ".data")]
    times: Times = {}
    with subprocess.Popen(
        command, cwd=place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as up:
        assert up.stdout is not None  # noqa: S101 - it is a pipe
        for line in up.stdout:
            now = time.monotonic() - began
            if found := SET_UP.match(line):
                times[f"install: {found[1]}"] = float(found[2])
            elif line.startswith("set-up: done"):
                times["installed"] = now
            elif (found := STAGE.match(line)) or line.startswith("Ready after"):
                times[f"at {found[2]}" if found else "ready"] = now
            if line.startswith("Ready after"):
                break
        answer(f"http://127.0.0.1:{port}/v1/chat/completions", BODY)
        times["answer"] = time.monotonic() - began
        times["start"] = times["ready"] - times.get("installed", 0.0)
        up.send_signal(signal.SIGINT)
        up.communicate()
    return times


def theirs(place: Path, environ: dict[str, str]) -> float:
    """Run vLLM's server until it is healthy; return the seconds that this takes."""
    port = free_port()
    python = str(place / ".venv" / "bin" / "python")
    model = str(place / "worker_vllm" / "demo")
    command = [python, "-m", VLLM, "--model", model, *FLAGS, "--port", str(port)]
    began = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=place,
        env=environ | ENGINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        answer(f"http://127.0.0.1:{port}/health")
        seconds = time.monotonic() - began
        server.terminate()
    return seconds


def answer(url: str, body: bytes | None = None) -> None:
    """Wait until this URL returns status 200. Raises TimeoutError."""
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
    """Clone, install and start both servers twice, in turns; return seconds and ratios by name."""
    mine = folder / "ours"
    peer = folder / "theirs"
    old = folder / "against"
    for place in (mine, peer, old):
        place.mkdir()
    began = time.monotonic()
    our_clone = clone(mine, commit)
    cloned = time.monotonic() - began
    first = ours(our_clone, environment(mine))
    their_clone = clone(peer, commit)
    subprocess.run(
        [PYTHON, "-c", INSTALL], cwd=their_clone / "scripts", env=environment(peer), check=True
    )
    their_first = theirs(their_clone, environment(peer))
    second = ours(our_clone, environment(mine))
    their_second = theirs(their_clone, environment(peer))
    times = {f"first {name}": value for name, value in first.items()}
    times |= {f"second {name}": value for name, value in second.items()}
    times |= {"clone to answer": cloned + first["answer"]}
    times |= {"vLLM's first": their_first, "vLLM's second": their_second}
    times |= {
        "ratio of the first": first["start"] / their_first,
        "ratio of the second": second["start"] / their_second,
    }
    if against:
        began = time.monotonic()
        before = clone(old, against)
        cloned = time.monotonic() - began
        times[f"clone to answer, {against}"] = cloned + ours(before, environment(old))["answer"]
    return times


def main() -> None:
    """Print the figures of every round and their medians."""
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
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"{name + ' ':.<56} {median(values):7.2f}   {each}")


if __name__ == "__main__":
    main()
