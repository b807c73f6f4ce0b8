"""Generate docs/lifecycle.md from the lifecycle table."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from proxy.jobs.lifecycle import TRANSITIONS, mermaid  # noqa: E402 - after the path is known

PAGE = """# The lifecycle of a job

`python3 scripts/draw_lifecycle.py` generates this page from the table in `proxy/jobs/lifecycle.py`. A test checks that
the page is up to date.

```mermaid
{diagram}```

| event | from | to |
|---|---|---|
{rows}

Any other pair of status and event is illegal. `attempt` grows at every `take` and never decreases; it is the fencing
token. `failures` counts lost runs and is reset to 0 by `retry`; after three lost runs the job fails instead of being
released.
"""


def main() -> None:
    """Write the page, with the diagram and the table of events."""
    rows = "\n".join(
        f"| {event} | {', '.join(sorted(transition.sources))} | {transition.target} |"
        for event, transition in TRANSITIONS.items()
    )
    (ROOT / "docs" / "lifecycle.md").write_text(PAGE.format(diagram=mermaid(), rows=rows))


if __name__ == "__main__":
    main()
