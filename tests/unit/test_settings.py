"""The settings of the proxy."""

import re
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from proxy.settings import Settings, worker_environment
from proxy.webhooks.signature import read_secret


def test_an_endpoint_may_name_its_models() -> None:
    endpoints = Settings(endpoint=["default", "big=Qwen/Qwen3-8B,alias"]).endpoints()
    assert [(one.id, one.models) for one in endpoints] == [
        ("default", ()),
        ("big", ("Qwen/Qwen3-8B", "alias")),
    ]


def test_lists_are_words_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_API_KEY", "alice=one two")
    assert [key.get_secret_value() for key in Settings().api_key] == ["alice=one", "two"]


def test_only_ascii_blanks_separate_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank of another kind comes from a paste; two halves of a key would both be wrong."""
    monkeypatch.setenv("PROXY_API_KEY", " one\ttwo\nhalf\u00a0half ")
    assert Settings().client_keys() == ["one", "two", "half\u00a0half"]
    assert "character 5 of a key" in (Settings().refusal() or "")


@pytest.mark.parametrize(
    ("store", "file"),
    [
        ("", Path("data/jobs.db")),
        ("memory:", None),
        ("sqlite:///jobs.sqlite", Path("jobs.sqlite")),
        ("sqlite:////srv/jobs.db", Path("/srv/jobs.db")),
    ],
)
def test_jobs_are_in_a_file_or_in_memory(store: str, file: Path | None) -> None:
    assert Settings(data_dir=Path("data"), store=store).store_file() == file


@pytest.mark.parametrize(
    "wrong", ["memory", "sqlite:", "sqlite:///", "/srv/jobs.db", "mysql://here"]
)
def test_an_unknown_store_is_rejected(wrong: str) -> None:
    with pytest.raises(ValidationError, match="sqlite:///PATH or memory:"):
        Settings(store=wrong)


@pytest.mark.parametrize("wrong", ["", "a b", "a/b", "x" * 81])
def test_an_endpoint_id_has_a_pattern(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Settings(endpoint=[wrong])


def test_a_variable_that_is_set_and_empty_is_a_key_that_went_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings().refusal() is None
    monkeypatch.setenv("PROXY_API_KEY", "")
    assert "a key is empty" in (Settings().refusal() or "")


def test_the_generated_token_is_not_accepted_as_a_client_key(tmp_path: Path) -> None:
    token = SecretStr(Settings(data_dir=tmp_path).token())
    assert Settings(data_dir=tmp_path, api_key=[SecretStr("another-key")]).refusal() is None
    assert "also the worker token" in (Settings(data_dir=tmp_path, api_key=[token]).refusal() or "")


def test_the_worker_token_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    token = settings.token()
    assert len(token) >= 32
    assert Settings(data_dir=tmp_path / "data").token() == token
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "worker-token").stat().st_mode) == 0o600


def test_the_webhook_secret_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    secret = Settings(data_dir=tmp_path).signing_secret()
    assert len(read_secret(secret)) == 32
    assert Settings(data_dir=tmp_path).signing_secret() == secret
    assert stat.S_IMODE((tmp_path / "webhook-secret").stat().st_mode) == 0o600
    given = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert Settings(data_dir=tmp_path, webhook_secret=SecretStr(given)).signing_secret() == given


def test_an_invalid_webhook_secret_is_rejected_and_not_shown() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(webhook_secret=SecretStr("whsec_hush"))
    assert "hush" not in str(refused.value)


def test_receivers_are_names_and_networks() -> None:
    assert Settings(webhook_allow=["hooks", "10.0.0.0/8"]).receivers().has_name("HOOKS")
    with pytest.raises(ValidationError):
        Settings(webhook_allow=["http://hooks/"])


def test_workers_do_not_inherit_the_proxys_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROXY_API_KEY", "PROXY_WORKER_TOKEN", "PROXY_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "hush")
    assert "hush" not in worker_environment({}).values()


def test_secrets_do_not_show(tmp_path: Path) -> None:
    settings = Settings(
        api_key=[SecretStr("hush-hush")],
        worker_token=SecretStr("hush-hush"),
        webhook_secret=SecretStr("whsec_hush" + "A" * 36),
        data_dir=tmp_path,
    )
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("http://localhost:8669/", "http://localhost:8669"),
        ("HTTPS://Chat.Example:443", "https://chat.example"),
        ("http://chat.example:08080", "http://chat.example:8080"),
        ("http://[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
        ("http://192.168.0.7:5173", "http://192.168.0.7:5173"),
        ("chrome-extension://abcdefghij", "chrome-extension://abcdefghij"),
        ("http://4.example", "http://4.example"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_origins_are_in_the_form_that_browsers_send(given: str, sent: str) -> None:
    assert Settings(cors_origin=[given]).cors_origin == [sent]


@pytest.mark.parametrize(
    "never_sent",
    [
        "localhost:8669", "http://localhost:99999", "http://localhost:0", "ws://localhost:8669",
        "file://host", "http://chat.example/path", "https://*.example", "http://user@host",
        "http://127.1:8000", "http://1.2.3.400", "http://[::1", "http://[::g]", "http://bücher.example",
        "http://chat.example?x", "http://", "",
    ],
)  # fmt: skip
def test_an_origin_that_can_never_match_is_rejected(never_sent: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(repr(never_sent))):
        Settings(cors_origin=[never_sent])
