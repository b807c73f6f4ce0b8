import json
import os
from pathlib import Path

import pytest

from worker_vllm.settings import Settings, SettingsError, read_environment, read_settings


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


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("/v1", "/v1"),
        ("/base/v1/", "/v1"),
        ("/openai/v1", "/openai/v1"),
        ("/v2/mine/openai/v1", "/v2/mine/openai/v1"),
        ("/v2", "/v2"),
        ("/v2/mine/worker", "/v2/mine/worker"),
    ],
)
def test_the_path_of_clients_is_not_part_of_the_address(
    monkeypatch: pytest.MonkeyPatch, end: str, named: str
) -> None:
    with pytest.raises(SettingsError, match=f"^WORKER_CONNECT is wrong: leave out {named}/? "):
        read(monkeypatch, WORKER_CONNECT=f"http://127.0.0.1:8000{end}")


def test_an_error_names_the_variable_that_is_set_and_the_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError, match=r"^MAX_CONCURRENCY is .*; flag --max-concurrency\)$"):
        read(monkeypatch, MAX_CONCURRENCY="many")
    with pytest.raises(SettingsError, match=r"^WORKER_ENDPOINT is .*--endpoint\)$"):
        read(monkeypatch, MAX_CONCURRENCY="", WORKER_ENDPOINT="a b")
    with pytest.raises(
        SettingsError, match=r"^WORKER_UPSTREAM_KEY is .*; flag --upstream-key-file"
    ):
        read(monkeypatch, WORKER_ENDPOINT="", WORKER_UPSTREAM_KEY="a b")


def test_the_key_of_the_upstream_can_be_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text("upstream-key")
    settings = read(monkeypatch, WORKER_UPSTREAM_KEY_FILE=str(path))
    assert settings.upstream_api_key == "upstream-key"
    with pytest.raises(SettingsError, match=r"WORKER_UPSTREAM_KEY and .*_FILE are both set"):
        read(monkeypatch, WORKER_UPSTREAM_KEY="another")


@pytest.mark.parametrize(
    ("field", "ours", "theirs"),
    [
        ("max_concurrency", "WORKER_MAX_CONCURRENCY", "MAX_CONCURRENCY"),
        ("model", "WORKER_MODEL", "MODEL_NAME"),
        ("served_model_name", "WORKER_SERVED_MODEL_NAME", "OPENAI_SERVED_MODEL_NAME_OVERRIDE"),
    ],
)
def test_a_name_of_worker_vllm_is_an_alias_and_ours_takes_precedence(
    monkeypatch: pytest.MonkeyPatch, field: str, ours: str, theirs: str
) -> None:
    assert str(getattr(read(monkeypatch, **{theirs: "3", ours: ""}), field)) == "3"
    assert str(getattr(read(monkeypatch, **{ours: "4"}), field)) == "4"


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the file of a baked model. The variables that it sets are restored at the end."""
    for name in (
        "MODEL_NAME",
        "TOKENIZER_NAME",
        "QUANTIZATION",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.setenv(name, "0" if name == "HF_HUB_OFFLINE" else "")
    path = tmp_path / "local_model_args.json"
    path.write_text(
        json.dumps({"MODEL_NAME": "/models/a", "TOKENIZER_NAME": "/models/t", "QUANTIZATION": None})
    )
    return path


def test_a_baked_model_takes_precedence_and_disables_the_hub(
    monkeypatch: pytest.MonkeyPatch, baked: Path
) -> None:
    variables = {"WORKER_BAKED_MODEL": str(baked), "MODEL_NAME": "org/other", "QUANTIZATION": "awq"}
    assert read(monkeypatch, **variables).model == "/models/a"
    found = read_environment()
    assert (found["TOKENIZER_NAME"], found["QUANTIZATION"]) == ("/models/t", "awq")
    assert (found["HF_HUB_OFFLINE"], found["TRANSFORMERS_OFFLINE"]) == ("1", "1")


def test_worker_model_overrides_a_baked_model(monkeypatch: pytest.MonkeyPatch, baked: Path) -> None:
    assert (
        read(monkeypatch, WORKER_BAKED_MODEL=str(baked), WORKER_MODEL="org/other").model
        == "org/other"
    )
    assert os.environ["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_an_unreadable_baked_model_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, baked: Path, text: str
) -> None:
    baked.write_text(text)
    with pytest.raises(
        SettingsError, match=r"^WORKER_BAKED_MODEL is wrong: .*local_model_args\.json"
    ) as caught:
        read(monkeypatch, WORKER_BAKED_MODEL=str(baked))
    assert "\n" not in str(caught.value)


def test_an_upstream_url_implies_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, WORKER_UPSTREAM="http://127.0.0.1:9").engine_kind == "upstream"


def test_an_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_invalid_setting_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        _ = read(monkeypatch, **{name: value}).worker_url

    line = str(caught.value)
    assert "\n" not in line
    assert name.removeprefix("WORKER_") in line or "WORKER_UPSTREAM" in line


@pytest.mark.parametrize("name", ["WORKER_TOKEN", "WORKER_UPSTREAM_KEY", "VLLM_API_KEY"])
def test_a_secret_that_no_header_can_carry_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is wrong: character 3 ") as refused:
        read(monkeypatch, **{name: "clé-secrète-1234"})
    assert refused.value.status == 78
    assert "1234" not in str(refused.value)
