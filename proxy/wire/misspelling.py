"""Find environment variables that look like settings and are not: most of them are misspelt."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_variables(names: Iterable[str], prefix: str, known: Iterable[str]) -> dict[str, str]:
    """Return the names with this prefix that are not known, each with the most similar known one.

    The value is an empty string if none is similar. Only what follows the prefix is compared.
    """
    by_rest = {name.removeprefix(prefix): name for name in known}
    unknown: dict[str, str] = {}
    for name in sorted(names):
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and by_rest.get(rest) != name:
            longer = [one for one in by_rest if one.startswith(rest)]
            similar = get_close_matches(rest, by_rest, n=1) or longer
            unknown[name] = by_rest[similar[0]] if similar else ""
    return unknown
