"""Secrets that are like no other text, so that one glimpse of them anywhere is a leak."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote


@dataclass
class Canaries:
    """The secrets by name, and everything that was seen."""

    secrets: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    def new(self, name: str) -> str:
        """A secret of its own."""
        return self.add(
            name, f"canary/{token_hex(12)}+{name}="
        )  # what is escaped in URLs and in base64 is in it

    def add(self, name: str, secret: str) -> str:
        """One that was made elsewhere."""
        self.secrets[name] = secret
        return secret

    def see(self, where: str, content: str | bytes) -> None:
        """Something that was written somewhere."""
        self.seen.append(
            (where, content.encode("utf-8", "replace") if isinstance(content, str) else content)
        )

    def see_folder(self, folder: Path, besides: frozenset[str] = frozenset()) -> None:
        """All files below it, but those that are there to hold a secret; and the ballast, which is nothing but big."""
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in besides and path.suffix != ".ballast":
                self.see(path.name, path.read_bytes())

    @property
    def bytes_seen(self) -> int:
        return sum(len(content) for _, content in self.seen)

    def leaks(self) -> list[str]:
        """Which secret was seen where."""
        wanted = [(name, form) for name, secret in self.secrets.items() for form in forms(secret)]
        return [
            f"{name} in {where}"
            for where, content in self.seen
            for name, form in wanted
            if form in content
        ]


def forms(secret: str) -> set[bytes]:
    """A secret as it is, and as it may be written: escaped, encoded, as digits."""
    plain = secret.encode()
    encoded = {
        base64.b64encode(b"x" * lead + plain)[4 if lead else 0 : -4] for lead in range(3)
    }  # wherever it begins
    return {
        plain,
        plain.hex().encode(),
        quote(secret, safe="").encode(),
        json.dumps(secret)[1:-1].encode(),
    } | encoded
