"""The variables that the vLLM engine derives from the settings before it imports vLLM."""

from pathlib import Path

import pytest

from worker_vllm.engine.vllm import DEMO_FOLDER, _environment, _with_model
from worker_vllm.settings import Settings


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in ({"WORKER_CONNECT": "http://127.0.0.1:1"} | variables).items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_variables_override_the_flags_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = settings(monkeypatch, WORKER_MODEL="demo")
    variables = _with_model(
        configured, {"MAX_MODEL_LEN": "512", "DTYPE": "", "MODEL_NAME": "org/other"}, []
    )
    assert variables["MODEL_NAME"] == str(DEMO_FOLDER)
    assert (variables["MAX_MODEL_LEN"], variables["DTYPE"]) == ("512", "bfloat16")
    assert variables["SERVED_MODEL_NAME"] == "demo"


def test_a_flag_on_the_command_line_replaces_the_one_of_the_demo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured = settings(monkeypatch, WORKER_MODEL="demo")
    variables = _with_model(configured, {}, ["--max_model_len", "512", "--dtype=float32"])
    assert not {"MAX_MODEL_LEN", "DTYPE"} & variables.keys()
    assert variables["ENFORCE_EAGER"] == "true"


def test_our_names_override_those_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = settings(monkeypatch, WORKER_MODEL="org/ours", WORKER_SERVED_MODEL_NAME="ours")
    theirs = {"MODEL_NAME": "org/theirs", "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "theirs"}
    assert _with_model(configured, theirs, []) == {
        "MODEL_NAME": "org/ours",
        "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "ours",
    }


def test_models_are_stored_on_the_volume_if_it_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = settings(monkeypatch, WORKER_MODEL="org/name", BASE_PATH=str(tmp_path))
    cache = str(tmp_path / "huggingface-cache" / "hub")
    defaults = _environment(here, {})
    assert (defaults["HF_HOME"], defaults["HF_HUB_CACHE"]) == (cache, cache)
    assert "HF_HUB_OFFLINE" not in defaults
    assert "HF_HUB_CACHE" not in _environment(here, {"HF_HOME": "/mine"})
    nowhere = settings(monkeypatch, BASE_PATH=str(tmp_path / "absent"))
    assert "HF_HOME" not in _environment(nowhere, {})


def test_a_model_folder_disables_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (
        _environment(settings(monkeypatch, WORKER_MODEL=str(tmp_path)), {})["HF_HUB_OFFLINE"] == "1"
    )
