"""Secrets that resemble no other text, so that any occurrence of them is a leak."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote


@dataclass
class Canaries:
    """The secrets by name, and all collected texts."""

    secrets: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    def new(self, name: str) -> str:
        """Generate a secret.

        It has characters that are escaped in URLs and in base64.
        """
        return self.add(name, f"canary/{token_hex(12)}+{name}=")

    def add(self, name: str, secret: str) -> str:
        """Register a secret that was generated elsewhere."""
        self.secrets[name] = secret
        return secret

    def see(self, where: str, content: str | bytes) -> None:
        """Collect a text that was written to `where`."""
        data = content.encode("utf-8", "replace") if isinstance(content, str) else content
        self.seen.append((where, data))

    def see_folder(self, folder: Path, besides: frozenset[str] = frozenset()) -> None:
        """Collect all files of a folder.

        Skips `besides`, the files that are supposed to have a secret, and the ballast, which is
        large and has no content.
        """
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in besides and path.suffix != ".ballast":
                self.see(path.name, path.read_bytes())

    @property
    def bytes_seen(self) -> int:
        return sum(len(content) for _, content in self.seen)

    def leaks(self) -> list[str]:
        """Return a line for each secret that occurs in a collected text."""
        found: list[str] = []
        for name, secret in self.secrets.items():
            for form in forms(secret):
                found += [f"{name} in {where}" for where, content in self.seen if form in content]
        return found


def forms(secret: str) -> set[bytes]:
    """Return a secret in its plain form, and in its escaped, base64 and hexadecimal forms."""
    plain = secret.encode()
    # Base64 depends on the offset of the secret in the encoded text.
    encoded = {base64.b64encode(b"x" * lead + plain)[4 if lead else 0 : -4] for lead in range(3)}
    return {
        plain,
        plain.hex().encode(),
        quote(secret, safe="").encode(),
        json.dumps(secret)[1:-1].encode(),
    } | encoded
