"""Draw docs/lifecycle.md from the lifecycle table."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from proxy.jobs.lifecycle import TRANSITIONS, mermaid  # noqa: E402 - after the path is known

PAGE = """# The life of a job

Drawn by `python3 scripts/draw_lifecycle.py` from the one table in `proxy/jobs/lifecycle.py`; a test keeps the page and the
table equal.

```mermaid
{diagram}```

| event | from | to |
|---|---|---|
{rows}

A transition that is not in the table is illegal. `attempt` grows with every `take` and never decreases; it is the only
fencing token. `failures` counts lost runs and is reset to 0 by `retry`; at three the job fails instead of being released.
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
