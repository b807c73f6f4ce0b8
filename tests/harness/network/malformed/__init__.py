"""Requests that must not be served, by category; all of them are in `CASES`."""

from harness.network.malformed import fields, framing, lines, smuggling
from harness.network.malformed.case import TOKEN, Case

FAMILIES = (
    *(lines.methods, lines.versions, lines.targets, lines.spaces),
    *(fields.hosts, fields.names, fields.values, fields.ends, fields.sizes, fields.pairs),
    *(framing.lengths, framing.codings, framing.chunks, framing.trailers),
    *(smuggling.both, smuggling.hidden, smuggling.upgrades),
)
CASES = [
    case._replace(name=f"{family.__name__}: {case.name}")
    for family in FAMILIES
    for case in family()
]

__all__ = ["CASES", "FAMILIES", "TOKEN", "Case"]
