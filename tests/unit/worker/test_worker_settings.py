import pytest

from worker_vllm.settings import Settings, SettingsError, read_settings


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    monkeypatch.setenv("WORKER_CONNECT", "http://127.0.0.1:8000")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return read_settings()


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch)

    assert settings.endpoint == "default"
    assert settings.id.startswith("w-")
    assert len(settings.id) == 10
    assert settings.engine_kind == "vllm"
    assert settings.max_concurrency is None


@pytest.mark.parametrize(
    ("connect", "url"),
    [
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/v2/default/worker"),
        ("https://proxy.example/base/", "wss://proxy.example/base/v2/default/worker"),
    ],
)
def test_the_address_to_dial(monkeypatch: pytest.MonkeyPatch, connect: str, url: str) -> None:
    assert read(monkeypatch, WORKER_CONNECT=connect).worker_url == url


@pytest.mark.parametrize("name", ["MAX_CONCURRENCY", "WORKER_MAX_CONCURRENCY"])
def test_max_concurrency_has_two_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert read(monkeypatch, **{name: "3"}).max_concurrency == 3


def test_an_upstream_decides_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, WORKER_UPSTREAM="http://127.0.0.1:9").engine_kind == "upstream"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, WORKER_METRICS_PORT="", MAX_CONCURRENCY="").metrics_port is None


def test_the_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, WORKER_TOKEN="very-secret", VLLM_API_KEY="also-secret")

    assert "secret" not in repr(settings)
    assert settings.vllm_api_key.get_secret_value() == "also-secret"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKER_CONNECT", "127.0.0.1:8000"),
        ("WORKER_CONNECT", ""),
        ("WORKER_ENDPOINT", "a/b"),
        ("WORKER_ENGINE", "llama"),
        ("WORKER_ENGINE", "upstream"),
        ("WORKER_MAX_CONCURRENCY", "0"),
        ("MAX_CONCURRENCY", "many"),
        ("WORKER_METRICS_PORT", "70000"),
        ("WORKER_DRAIN_SECONDS", "soon"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _ = read(monkeypatch, **{name: value}).worker_url

    line = str(caught.value)
    assert "\n" not in line
    assert name.removeprefix("WORKER_") in line or "WORKER_UPSTREAM" in line
