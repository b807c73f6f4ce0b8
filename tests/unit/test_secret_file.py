"""Files of keys and tokens: valid contents, and the reasons for rejection."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from proxy.settings import Settings, worker_environment
from proxy.wire.secret_file import SECRET_FILE_MAX_BYTES, SecretFileError, read_secret, read_secrets
from worker_vllm.settings import SettingsError, read_settings

KEY = "open-sesame-1"
OTHER = "open-sesame-2"
CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "nothing but comments": (b"# alice=x\n\n \t\n", "is empty"),
    "not UTF-8": (f"{KEY}\n".encode() + b"\xff", r"not UTF-8 text \(byte 14\)"),
    "UTF-16": (KEY.encode("utf-16"), "not UTF-8 text"),
    "binary": (b"\x00\x01", "line 1: only visible ASCII"),
    "a blank in a key": (f"alice={KEY} {OTHER}".encode(), "line 1: only visible ASCII"),
    "a comment behind a key": (f"#\n{KEY} # alice's".encode(), "line 2: only visible ASCII"),
    "a key that no header can carry": ("schlüssel-123".encode(), "line 1: only visible ASCII"),
    "the same line twice": (f"{KEY}\n\n{KEY}\n".encode(), "line 3: duplicate of line 1"),
    "too large": (b"x" * (SECRET_FILE_MAX_BYTES + 1), "larger than 64 KB"),
}


def written(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_file_has_one_key_per_line_and_comments(tmp_path: Path) -> None:
    text = f"\ufeff# of alice\nalice={KEY}\n\n  {OTHER}\t\n# the end"
    assert read_secrets(written(tmp_path, text.encode())) == (f"alice={KEY}", OTHER)


def test_carriage_returns_are_not_part_of_a_key(tmp_path: Path) -> None:
    assert read_secrets(written(tmp_path, f"{KEY}\r\n{OTHER}\r\n".encode())) == (KEY, OTHER)


@pytest.mark.parametrize("content", CONTENTS)
def test_invalid_content_is_rejected_and_not_shown(tmp_path: Path, content: str) -> None:
    data, says = CONTENTS[content]
    path = written(tmp_path, data)
    with pytest.raises(SecretFileError, match=says) as refused:
        read_secrets(path)
    assert str(path) in str(refused.value)
    assert not [secret for secret in (KEY, OTHER) if secret in str(refused.value)]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o606, 0o610, 0o777])
def test_a_file_that_other_users_may_access_is_rejected(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, KEY.encode(), mode)
    with pytest.raises(
        SecretFileError, match=rf"open to other users \(mode {mode:04o}\)\. Run: chmod 600 "
    ):
        read_secrets(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, KEY.encode(), mode)
    (tmp_path / "link").symlink_to(path)
    assert read_secret(tmp_path / "link") == KEY


def test_a_missing_file_or_a_directory_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match=r"does not exist\. Create it .* chmod 600"):
        read_secrets(tmp_path / "nothing")
    with pytest.raises(SecretFileError, match="is not a file"):
        read_secrets(tmp_path)
    with pytest.raises(SecretFileError, match=r"cannot be opened: Not a directory"):
        read_secrets(written(tmp_path, KEY.encode()) / "x")
    os.mkfifo(tmp_path / "pipe", 0o600)
    # The pipe has no writer, and reading does not block.
    with pytest.raises(SecretFileError, match="is empty"):
        read_secrets(tmp_path / "pipe")


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, f"{KEY}\n".encode())
        os.close(writing)
        assert read_secrets(Path(f"/dev/fd/{reading}")) == (KEY,)
    finally:
        os.close(reading)


def test_a_token_file_has_exactly_one_secret(tmp_path: Path) -> None:
    assert read_secret(written(tmp_path, f"# made today\n{KEY}\n".encode())) == KEY
    with pytest.raises(SecretFileError, match="contains 2 secrets"):
        read_secret(written(tmp_path, f"{KEY}\n{OTHER}\n".encode()))


def test_keys_of_the_file_and_of_the_variable_are_both_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXY_API_KEY", f"bob={OTHER}")
    monkeypatch.setenv("PROXY_API_KEY_FILE", str(written(tmp_path, f"alice={KEY}".encode())))
    settings = Settings(data_dir=tmp_path)
    assert settings.client_keys() == [f"bob={OTHER}", f"alice={KEY}"]
    assert [key.principal.owner for key in settings.keys("token")] == ["bob", "alice", "workers"]
    assert not settings.hosts().is_open
    assert KEY not in repr(settings) + settings.model_dump_json()


def test_an_owner_may_have_two_keys_but_a_key_has_one_owner(tmp_path: Path) -> None:
    rotating = written(tmp_path, f"alice={KEY}\nalice={OTHER}\n".encode())
    assert Settings(data_dir=tmp_path, api_key_file=rotating).refusal() is None  # type: ignore[arg-type]
    shared = written(tmp_path, f"alice={KEY}\nbob={KEY}\n".encode())
    refused = Settings(data_dir=tmp_path, api_key_file=shared).refusal()  # type: ignore[arg-type]
    assert "two owners have the same key" in (refused or "")
    assert KEY not in (refused or "")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice=", "a key is empty"),
        ("alice=short", "shorter than 8 characters"),
        ("t" * 9, "also the worker token"),
    ],
)
def test_keys_in_a_file_pass_the_start_up_check(tmp_path: Path, line: str, says: str) -> None:
    path = written(tmp_path, line.encode())
    (tmp_path / "worker-token").write_text("t" * 9)
    refused = Settings(data_dir=tmp_path, host="0.0.0.0", api_key_file=path).refusal()  # type: ignore[arg-type]
    assert says in (refused or "")


def test_a_variable_with_an_empty_path_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PROXY_API_KEY_FILE", "PROXY_WORKER_TOKEN_FILE"):
        with monkeypatch.context() as only:
            only.setenv(name, "")
            with pytest.raises(ValidationError, match="the path is empty"):
                Settings()


def test_the_proxy_has_one_source_of_the_worker_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXY_WORKER_TOKEN_FILE", str(written(tmp_path, KEY.encode())))
    assert Settings(data_dir=tmp_path).token() == KEY
    assert not (tmp_path / "worker-token").exists()
    monkeypatch.setenv("PROXY_WORKER_TOKEN", OTHER)
    with pytest.raises(ValidationError, match="both set: unset one"):
        Settings()


def test_a_worker_has_one_source_of_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_CONNECT", "http://127.0.0.1:8000")
    monkeypatch.setenv("WORKER_TOKEN_FILE", str(written(tmp_path, KEY.encode())))
    assert read_settings().worker_token == KEY
    assert KEY not in repr(read_settings())
    monkeypatch.setenv("WORKER_TOKEN", OTHER)
    with pytest.raises(SettingsError, match=r"WORKER_TOKEN and WORKER_TOKEN_FILE are both set"):
        read_settings()
    monkeypatch.setenv("WORKER_TOKEN", "")
    written(tmp_path, KEY.encode(), 0o644)
    with pytest.raises(SettingsError, match=r"^WORKER_TOKEN_FILE is wrong: .* chmod 600"):
        read_settings()


def test_workers_inherit_one_token_and_no_file_of_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PROXY_API_KEY_FILE", "PROXY_WORKER_TOKEN_FILE", "WORKER_TOKEN_FILE"):
        monkeypatch.setenv(name, "/secrets")
    given = worker_environment({"WORKER_TOKEN": KEY})
    assert "/secrets" not in given.values()
    assert worker_environment({})["WORKER_TOKEN_FILE"] == "/secrets"
