"""Read keys and tokens from a file, so that they need not be passed as process arguments.

The file has one secret per line; blank lines and lines that begin with `#` are skipped. A file that
other users may access is rejected. A pipe works, too: `--api-key-file <(pass show proxy)`.
"""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

SECRET_FILE_MAX_BYTES = 64 * 1024

# Other characters cannot be sent in an `Authorization` field without an encoding.
_UNSENDABLE = re.compile(r"[^!-~]")


class SecretFileError(ValueError):
    """A file of secrets is unusable. The message has the reason and the remedy, never a secret."""


class UnsendableSecretError(SecretFileError):
    """A secret has a character that cannot be sent in a header field."""


def unsendable_character(secret: str) -> int:
    """Return the position of the first character that no header field can carry, from 1; else 0.

    Visible ASCII characters can be sent. A blank, a zero-width character or a letter with an accent
    in a key would reject every client that presents the key, without a visible reason.
    """
    found = _UNSENDABLE.search(secret)
    return 0 if found is None else found.start() + 1


def check_secret(secret: str) -> None:
    """Raise UnsendableSecretError if a secret cannot be sent in a header field."""
    if position := unsendable_character(secret):
        raise UnsendableSecretError(
            f"character {position} cannot be sent in a header field."
            " Use only visible ASCII characters, without blanks"
        )


def read_secrets(path: Path) -> tuple[str, ...]:
    """Return the secrets in a file in order; the result is never empty.

    Raises:
        SecretFileError: the file is missing, not private, too large or not text; or it contains no
            secret, a duplicate, or characters that cannot be sent in a header.

    """
    lines: dict[str, int] = {}
    for number, line in enumerate(_text(path).split("\n"), 1):
        secret = line.strip(" \t\r")
        if not secret or secret.startswith("#"):
            continue
        if unsendable_character(secret):
            raise UnsendableSecretError(
                f"{path}, line {number}: only visible ASCII characters without blanks are allowed"
                " in a key. Put comments on lines of their own."
            )
        if secret in lines:
            raise SecretFileError(
                f"{path}, line {number}: duplicate of line {lines[secret]}. Remove one of them."
            )
        lines[secret] = number
    if not lines:
        raise SecretFileError(f"{path} is empty. Write one secret on a line of its own.")
    return tuple(lines)


def read_secret(path: Path) -> str:
    """Return the only secret in a file. Raises SecretFileError, also if there are several."""
    secrets = read_secrets(path)
    if len(secrets) > 1:
        raise SecretFileError(f"{path} contains {len(secrets)} secrets. Remove all but one.")
    return secrets[0]


def stored_secret(path: Path, make: Callable[[], str]) -> str:
    """Return the secret in a file of a data directory, which is created if it is missing.

    If the file is missing or empty, `make` generates a secret, which is stored for later starts.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    if not path.exists() or not path.read_text().strip():
        _write(path, make())
    return path.read_text().strip()


def _write(path: Path, secret: str) -> None:
    """Store a secret in a new private file. A crash leaves either the whole file or none."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(descriptor)
    new.replace(path)


def _text(path: Path) -> str:
    try:
        # Without O_NONBLOCK, opening a named pipe without a writer would block.
        descriptor = os.open(path.expanduser(), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SecretFileError(
            f"{path} does not exist. Create it with one secret per line, and run: chmod 600 {path}"
        ) from None
    except OSError as error:
        raise SecretFileError(
            f"{path} cannot be opened: {error.strerror}."
            " It must belong to the user of this process."
        ) from None
    try:
        data = _read(path, descriptor)
    finally:
        os.close(descriptor)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsendableSecretError(
            f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None


def _read(path: Path, descriptor: int) -> bytes:
    found = os.fstat(descriptor)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        raise SecretFileError(
            f"{path} is not a file. Give the path of a file with one secret per line."
        )
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(found.st_mode)
        raise SecretFileError(
            f"{path} is open to other users (mode {mode:04o}). Run: chmod 600 {path}"
        )
    os.set_blocking(descriptor, True)
    data = b""
    while len(data) <= SECRET_FILE_MAX_BYTES and (
        part := os.read(descriptor, SECRET_FILE_MAX_BYTES)
    ):
        data += part
    if len(data) > SECRET_FILE_MAX_BYTES:
        raise SecretFileError(
            f"{path} is larger than {SECRET_FILE_MAX_BYTES // 1024} KB. Check the path."
        )
    return data
