"""Read keys and tokens from a file, so that none has to stand in a process's arguments.

One secret a line; blank lines and lines that begin with `#` are skipped. The file is refused when
any other user may access it. A pipe works too: `--api-key-file <(pass show proxy)`.
"""

import os
import re
import stat
from pathlib import Path

MOST_BYTES = 64 * 1024

_SECRET = re.compile(r"[!-~]+")  # anything else cannot be sent in an `Authorization` field as it is


class SecretFileError(ValueError):
    """A file of secrets cannot be used; the text says why and what to do, and shows no secret."""


def read_secrets(path: Path) -> tuple[str, ...]:
    """Return the secrets in a file, in their order; at least one.

    Raises:
        SecretFileError: the file is missing, not private, too large, not text, or holds no secret,
            the same secret twice, or something that cannot be sent as one.

    """
    lines: dict[str, int] = {}
    for number, line in enumerate(_text(path).split("\n"), 1):
        secret = line.strip(" \t\r")
        if not secret or secret.startswith("#"):
            continue
        if not _SECRET.fullmatch(secret):
            raise SecretFileError(
                f"{path}, line {number}: only visible ASCII characters without blanks can be sent as"
                " a key. Comments need lines of their own."
            )
        if secret in lines:
            raise SecretFileError(
                f"{path}, line {number}: the same as line {lines[secret]}. Remove one of them."
            )
        lines[secret] = number
    if not lines:
        raise SecretFileError(f"{path} is empty. Write one secret on a line of its own.")
    return tuple(lines)


def read_secret(path: Path) -> str:
    """Return the one secret in a file; see `read_secrets`."""
    secrets = read_secrets(path)
    if len(secrets) > 1:
        raise SecretFileError(f"{path} holds {len(secrets)} secrets. Leave one of them in it.")
    return secrets[0]


def _text(path: Path) -> str:
    try:
        # Without O_NONBLOCK, opening a named pipe that no one writes to would wait without end.
        descriptor = os.open(path.expanduser(), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SecretFileError(
            f"{path} does not exist. Create it with one secret on a line, and run: chmod 600 {path}"
        ) from None
    except OSError as error:
        raise SecretFileError(
            f"{path} cannot be opened: {error.strerror}. It has to belong to the user of this process."
        ) from None
    try:
        data = _read(path, descriptor)
    finally:
        os.close(descriptor)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SecretFileError(
            f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None


def _read(path: Path, descriptor: int) -> bytes:
    found = os.fstat(descriptor)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        raise SecretFileError(
            f"{path} is not a file. Give the path of a file with one secret on a line."
        )
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(found.st_mode)
        raise SecretFileError(
            f"{path} is open to other users (mode {mode:04o}). Run: chmod 600 {path}"
        )
    os.set_blocking(descriptor, True)
    data = b""
    while len(data) <= MOST_BYTES and (part := os.read(descriptor, MOST_BYTES)):
        data += part
    if len(data) > MOST_BYTES:
        raise SecretFileError(
            f"{path} is larger than {MOST_BYTES // 1024} KB. Is it the right file?"
        )
    return data
