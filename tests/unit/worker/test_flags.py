"""Environment variables become flags, tested with a small parser with one action of each kind."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from worker_vllm.engine.arguments import parse, strict
from worker_vllm.engine.base import EngineError
from worker_vllm.engine.flags import flags_from, ignored, variables_of


def parser() -> argparse.ArgumentParser:
    made = strict(argparse.ArgumentParser)(prog="small")
    made.add_argument("--model", default="")
    made.add_argument("--config")
    made.add_argument("--served-model-name", nargs="+")
    made.add_argument("--lora-modules", nargs="+")
    made.add_argument("--capture-sizes", nargs="+", type=int)
    made.add_argument("--max-model-len", type=int)
    made.add_argument("--max-num-batched-tokens", type=int)
    made.add_argument("--quantization", "-q", choices=["awq", "fp8"])
    made.add_argument("--chat-template")
    made.add_argument("--gpu-memory-utilization", "--device-memory-utilization", type=float)
    made.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    made.add_argument("--disable-log-stats", action="store_true")
    made.add_argument("--hf-token", nargs="?", const=True)
    made.add_argument("--ssl-keyfile")
    made.add_argument("--host")
    return made


def words(**variables: str) -> list[str]:
    flags = flags_from(variables, parser()._actions)
    return [word for flag in flags for word in flag.words]


def parsed(*arguments: str, **variables: str) -> argparse.Namespace:
    return parse(parser(), variables, arguments)


@pytest.mark.parametrize(
    ("name", "value", "flags"),
    [
        ("MAX_MODEL_LEN", "512", "--max-model-len=512"),
        ("MAX_MODEL_LEN", " -1 ", "--max-model-len=-1"),
        ("QUANTIZATION", "awq", "--quantization=awq"),
        ("CHAT_TEMPLATE", "--{{ x }}", "'--chat-template=--{{ x }}'"),
        ("DEVICE_MEMORY_UTILIZATION", "0.5", "--device-memory-utilization=0.5"),
        ("ENFORCE_EAGER", "true", "--enforce-eager"),
        ("ENFORCE_EAGER", "On", "--enforce-eager"),
        ("ENFORCE_EAGER", "0", "--no-enforce-eager"),
        ("DISABLE_LOG_STATS", "yes", "--disable-log-stats"),
        ("DISABLE_LOG_STATS", "no", ""),
        ("SERVED_MODEL_NAME", "a, b", "--served-model-name a b"),
        ("SERVED_MODEL_NAME", '["a, b", "c"]', "--served-model-name 'a, b' c"),
        ("CAPTURE_SIZES", "[1, 2]", "--capture-sizes 1 2"),
        (
            "LORA_MODULES",
            '[{"name": "p", "path": "/p"}]',
            """--lora-modules '{"name": "p", "path": "/p"}'""",
        ),
        (
            "LORA_MODULES",
            '{"name": "p", "path": "/p"}',
            """--lora-modules '{"name": "p", "path": "/p"}'""",
        ),
        ("LORA_MODULES", "p=/p,q=/q", "--lora-modules p=/p q=/q"),
        ("MODEL_NAME", "org/name", "--model=org/name"),
        ("OPENAI_SERVED_MODEL_NAME_OVERRIDE", "a,b", "--served-model-name a b"),
        ("CUSTOM_CHAT_TEMPLATE", "/t", "--chat-template=/t"),
        ("VLLM_CONFIG_FILE", "/c.yaml", "--config /c.yaml"),
        ("MAX_NUM_BATCHED_TOKENS", "8192", "--max-num-batched-tokens=8192"),
        ("MAX_NUM_BATCHED_TOKENS", "0", ""),
        ("MAX_MODEL_LEN", "", ""),
        ("max_model_len", "512", ""),
        ("NO_ENFORCE_EAGER", "true", ""),
    ],
)
def test_a_variable_becomes_a_flag(name: str, value: str, flags: str) -> None:
    assert words(**{name: value}) == shlex.split(flags)


@pytest.mark.parametrize("name", ["HOST", "MODEL", "CONFIG", "HELP", "HF_TOKEN", "SSL_KEYFILE"])
def test_a_reserved_name_is_not_a_flag(name: str) -> None:
    assert words(**{name: "x"}) == []
    assert name not in variables_of(parser()._actions)


def test_the_image_s_own_name_wins_over_the_flag_s() -> None:
    assert words(OPENAI_SERVED_MODEL_NAME_OVERRIDE="a", SERVED_MODEL_NAME="b") == [
        "--served-model-name",
        "a",
    ]
    assert words(OPENAI_SERVED_MODEL_NAME_OVERRIDE="", SERVED_MODEL_NAME="b") == [
        "--served-model-name",
        "b",
    ]


def test_a_variable_without_effect_is_reported() -> None:
    given = {
        "SWAP_SPACE": "4",
        "TASK": "embed",
        "SSL_KEYFILE": "/key",
        "ROPE_THETA": "",
        "HOST": "0.0.0.0",
        "PATH": "x",
    }
    reasons = ignored(given, parser()._actions)
    assert set(reasons) == {"SWAP_SPACE", "TASK", "SSL_KEYFILE"}
    assert "RUNNER" in reasons["TASK"]
    with capture_logs() as logs:
        assert parse(parser(), given, []).ssl_keyfile is None
    assert {log["variable"] for log in logs} == set(reasons)


def test_a_flag_that_the_parser_still_has_is_not_removed() -> None:
    old = parser()
    old.add_argument("--swap-space", type=int)
    assert ignored({"SWAP_SPACE": "4"}, old._actions) == {}
    assert parse(old, {"SWAP_SPACE": "4"}, []).swap_space == 4


def test_raw_flags_win_over_variables_and_the_command_line_over_all() -> None:
    extra = "--max-model-len 2 --chat-template 'a b'"
    assert parsed(MAX_MODEL_LEN="1").max_model_len == 1
    assert parsed(MAX_MODEL_LEN="1", VLLM_EXTRA_ARGS=extra).max_model_len == 2
    both = parsed("--max-model-len", "3", MAX_MODEL_LEN="1", VLLM_EXTRA_ARGS=extra)
    assert (both.max_model_len, both.chat_template) == (3, "a b")
    assert parsed("--no-enforce-eager", ENFORCE_EAGER="true").enforce_eager is False


def test_only_the_strongest_configuration_file_is_read() -> None:
    """A second configuration file is rejected by vLLM."""
    assert parsed(VLLM_CONFIG_FILE="/weak.yaml").config == "/weak.yaml"
    assert words(VLLM_CONFIG_FILE="/weak.yaml") == ["--config", "/weak.yaml"]
    seen: list[list[str]] = []

    class Watching(argparse.ArgumentParser):
        def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
            seen.append(args)
            return super().parse_args(args, namespace)

    watching = strict(Watching)()
    watching.add_argument("--config")
    parse(watching, {"VLLM_CONFIG_FILE": "/weak.yaml"}, ["--config", "/strong.yaml"])
    assert "/weak.yaml" not in [word for args in seen for word in args]


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"MAX_MODEL_LEN": "many"}, [], "MAX_MODEL_LEN is wrong: .*invalid int value: 'many'"),
        ({"QUANTIZATION": "zip"}, [], "QUANTIZATION is wrong: .*awq"),
        (
            {"ENFORCE_EAGER": "maybe"},
            [],
            "ENFORCE_EAGER is wrong: 'maybe' is neither true nor false",
        ),
        ({"CAPTURE_SIZES": "1,x"}, [], "CAPTURE_SIZES is wrong"),
        (
            {"VLLM_EXTRA_ARGS": "--max-model-len 'x"},
            [],
            "VLLM_EXTRA_ARGS is wrong: No closing quotation",
        ),
        ({"VLLM_EXTRA_ARGS": "--nonsense"}, [], "VLLM_EXTRA_ARGS is wrong: .*--nonsense"),
        (
            {"VLLM_EXTRA_ARGS": "--max-model-len x", "MAX_MODEL_LEN": "1"},
            [],
            "VLLM_EXTRA_ARGS is wrong: .*'x'",
        ),
        ({"MAX_MODEL_LEN": "1"}, ["--max-model-len", "x"], "the command line is wrong: .*'x'"),
        ({}, ["--max-model-len"], "the command line is wrong: .*expected one argument"),
    ],
)
def test_an_invalid_flag_is_named_in_one_line(
    capfd: pytest.CaptureFixture[str],
    variables: dict[str, str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        parse(parser(), variables, arguments)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_help_is_printed_and_nothing_starts(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match="help"):
        parsed("--help")
    assert "--max-model-len" in capfd.readouterr().out


def test_an_exception_of_an_argument_type_is_reported() -> None:
    def read(path: str) -> str:
        return Path(path).read_text()

    reading = strict(argparse.ArgumentParser)()
    reading.add_argument("--notes", type=read)
    with pytest.raises(EngineError, match=r"NOTES is wrong: .*No such file"):
        parse(reading, {"NOTES": "/nowhere"}, [])
