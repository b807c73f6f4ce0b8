"""Draw docs/lifecycle.md from the lifecycle table."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from proxy.jobs.lifecycle import TRANSITIONS, mermaid  # noqa: E402 - after the path is known

PAGE = """# The life of a job

Drawn by `python3 scripts/draw_lifecycle.py` from the one table in `proxy/jobs/lifecycle.py`; a test holds the two
together.

```mermaid
{diagram}```

| event | from | to |
|---|---|---|
{rows}

What is absent is illegal. `attempt` grows at every `take` and never falls; it is the only fence. `failures` counts lost
runs and is set to 0 by `retry`; at three the job fails instead of being released.
"""


def main() -> None:
    """Write the page."""
    rows = "\n".join(
        f"| {event} | {', '.join(sorted(transition.sources))} | {transition.target} |"
        for event, transition in TRANSITIONS.items()
    )
    (ROOT / "docs" / "lifecycle.md").write_text(PAGE.format(diagram=mermaid(), rows=rows))


if __name__ == "__main__":
    main()
