"""The flags of the commands, their help, and explanations of arguments that are wrong."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from proxy.cli.commands import cli
from proxy.cli.misplaced import explain
from proxy.cli.up import keep_earlier
from proxy.cli.usage import command_line
from proxy.cli.worker_flags import WORKER_FLAGS, WORKER_VARIABLES
from proxy.settings import Settings as ProxySettings
from proxy.wire.misspelling import unknown_variables
from worker_vllm.settings import NO_FLAGS, variables_of
from worker_vllm.settings import Settings as WorkerSettings

MAKE = {"VLLM_SERVERLESS_COMMAND": "make up"}
OPTIONS = {
    "--api-key": True,
    "--api-key-file": True,
    "--model": True,
    "--port": True,
    "--help": False,
    "--queue-timeout": True,
}
AFTER = "is a flag of vLLM. "
VLLM = frozenset({"--max-model-len", "--enforce-eager", "--compilation-config", "--hf-token"})


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command; return its exit status and its output, in which a line break is a blank."""
    program = "make" if environment.get("VLLM_SERVERLESS_COMMAND") else "vllm-serverless"
    ended = CliRunner().invoke(
        cli, arguments, prog_name=program, env={"COLUMNS": "200", "TERM": "dumb", **environment}
    )
    return ended.exit_code, " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.output).split())


def options_of(command: str) -> set[str]:
    """Return the options of a command that its help lists."""
    group: Any = typer.main.get_command(cli)
    return {
        name
        for one in group.commands[command].params
        if not getattr(one, "hidden", False)
        for name in one.opts
    }


def flag(name: str, annotation: Any) -> str:
    """Return the flag that a setting must have: a secret has one for its file only."""
    is_value = "SecretStr" in str(annotation) and not name.endswith("_file")
    return f"--{name.replace('_', '-')}{'-file' if is_value else ''}"


@pytest.mark.parametrize("command", ["proxy", "up"])
def test_every_setting_of_the_proxy_has_a_flag_and_secrets_have_one_for_a_file(
    command: str,
) -> None:
    wanted = {flag(name, field.annotation) for name, field in ProxySettings.model_fields.items()}
    assert wanted <= options_of(command)
    assert not options_of(command) & {"--api-key", "--worker-token", "--webhook-secret"}


def test_every_setting_of_a_worker_has_a_flag_with_its_variable_and_default() -> None:
    fields = {
        name: field for name, field in WorkerSettings.model_fields.items() if name not in NO_FLAGS
    }
    assert {flag(name, field.annotation) for name, field in fields.items()} <= options_of("worker")
    table = {one.name: one for one in WORKER_FLAGS}
    secrets = {name for name, field in fields.items() if field.annotation is SecretStr}
    assert {*table} == {*fields} - secrets - {"token_file"}
    for name, one in table.items():
        assert one.variable == variables_of(name)[0]
        default = fields[name].default
        has_default = default not in (PydanticUndefined, None, "")
        assert one.default == (f"{default:g}" if isinstance(default, int | float) else str(default)
                               if has_default else "")  # fmt: skip
    own = {variable for name in fields for variable in variables_of(name)}
    assert {*WORKER_VARIABLES} == {name for name in own if name.startswith("WORKER_")} | {
        "BASE_PATH"
    }


@pytest.mark.parametrize("command", ["proxy", "up", "worker"])
def test_the_help_names_variables_defaults_and_an_example(command: str) -> None:
    status, text = run(command, "--help")
    assert status == 0
    assert text.startswith(f"Usage: vllm-serverless {command} [OPTIONS]")
    assert f"vllm-serverless {command} --" in text.partition("Example")[2]
    settings = ("[WORKER_LOG_LEVEL, default info]", "[WORKER_DRAIN_SECONDS, default 30]")
    if command != "worker":
        settings = ("[PROXY_QUEUE_TIMEOUT, default 300]", "[PROXY_PORT, default 8000]")
        assert "[PROXY_WEBHOOK_SECRET_FILE, PROXY_WEBHOOK_SECRET]" in text
    assert all(setting in text for setting in settings)
    assert ("PROXY_LOG_LEVEL" in text) == (command != "worker")


def test_usage_lines_show_the_command_that_make_runs() -> None:
    assert run("up", "--help", **MAKE)[1].startswith(
        'Usage: make up ARGS="[OPTIONS] [-- VLLM_FLAGS]"'
    )
    assert 'make up ARGS="--upstream http' in run("up", "--help", **MAKE)[1]
    status, text = run("up", "--workers", "many", **MAKE)
    assert status == 2
    assert "Try 'make up ARGS=--help' for help" in text
    assert run("up", "--workers", "many")[1].startswith(
        "Usage: vllm-serverless up [OPTIONS] [-- VLLM_FLAGS] Try 'vllm-serverless up --help'"
    )


def test_examples_are_lines_that_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_line("up", "--port 1") == "vllm-serverless up --port 1"
    monkeypatch.setenv("VLLM_SERVERLESS_COMMAND", "make up")
    assert command_line("up", "--port 1") == 'make up ARGS="--port 1"'


def test_the_version_is_printed() -> None:
    status, text = run("--version")
    assert status == 0
    assert re.fullmatch(r"vllm-serverless \S.* \(Python 3\.\d+\.\d+, .*(vLLM|vllm).*\)", text)


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        (("--port", "abc"), {}, "--port (PROXY_PORT): Input should be a valid integer"),
        ((), {"PROXY_LEASE": "-1"}, "--lease (PROXY_LEASE): Input should be greater than 0"),
        (("--max-queued", "x"), {}, "--max-queued (PROXY_MAX_QUEUED): "),
        (
            ("--webhook-secret-file", "/nowhere"),
            {},
            "--webhook-secret-file (PROXY_WEBHOOK_SECRET_FILE): /nowhere does not exist",
        ),
        ((), {"PROXY_LOG_LEVEL": "loud"}, "--log-level (PROXY_LOG_LEVEL): "),
    ],
)
def test_an_error_names_the_flag_and_the_variable(
    flags: Sequence[str], environment: dict[str, str], says: str
) -> None:
    for command in ("proxy", "up"):
        status, text = run(command, *flags, **environment)
        assert status == 2
        assert text.startswith(f"vllm-serverless: {says}")


def test_the_secret_of_webhooks_can_be_in_a_file(tmp_path: Path) -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text(secret)
    folder = {"PROXY_DATA_DIR": str(tmp_path), "PROXY_WEBHOOK_SECRET_FILE": str(path)}
    assert run("webhook-secret", **folder) == (0, secret)
    status, text = run("webhook-secret", **folder, PROXY_WEBHOOK_SECRET=secret)
    assert (status, "both set: unset one" in text) == (2, True)
    path.write_text("short")
    status, text = run("webhook-secret", **folder)
    assert (status, "(PROXY_WEBHOOK_SECRET_FILE): " in text) == (2, True)


@pytest.mark.parametrize(
    ("command", "words", "says", "example"),
    [
        ("up", "--max-model-len 5", f"--max-model-len {AFTER}", "-- --max-model-len 5"),
        ("worker", "--enforce-eager", f"--enforce-eager {AFTER}", "-- --enforce-eager"),
        ("up", "--port 1 --no-enforce-eager -- --seed 1", f"--no-enforce-eager {AFTER}",
         "… -- --no-enforce-eager --seed 1"),
        ("up", "--compilation-config.mode 3", f"--compilation-config.mode {AFTER}",
         "-- --compilation-config.mode 3"),
        ("up", "--max_model_lenght=9", "Did you mean --max-model-len? It is a flag of vLLM. ",
         "-- --max-model-len=9"),
        ("up", "--hf-token hush", f"--hf-token {AFTER}", "-- --hf-token …"),
        ("proxy", "--max-model-len 100", "the proxy runs no model. Pass it to the worker", ""),
        ("up", "--queuetimeout 3", "--queuetimeout. Did you mean --queue-timeout?", ""),
        ("up", "--api-keys k", "--api-keys. Did you mean --api-key-file?", ""),
        ("up", "org/model", "The model is given with --model", ""),
    ],
)  # fmt: skip
def test_arguments_in_the_wrong_place_are_explained(
    command: str, words: str, says: str, example: str
) -> None:
    fault = explain(command, words.split(), OPTIONS, lambda: VLLM)
    assert fault is not None
    assert says in fault.text
    assert fault.example == example
    assert ("come after `--`" in fault.text) == bool(example) or command == "up"


def test_a_flag_with_a_secret_names_the_one_for_a_file() -> None:
    fault = explain("proxy", ["--secret", "hush"], {"--secret-file": True}, lambda: VLLM)
    assert fault is not None
    assert "Use --secret-file PATH" in fault.text
    assert "hush" not in fault.text + fault.example


@pytest.mark.parametrize(
    "words",
    ["--model x --port 1", "--model=x -- --max-model-len 5", "--help --max-model-len", "--zzz", ""],
)
def test_other_arguments_are_left_to_typer(words: str) -> None:
    assert explain("up", words.split(), OPTIONS, lambda: VLLM) is None


def test_unknown_variables_are_found_with_the_one_that_was_meant() -> None:
    known = ["PROXY_QUEUE_TIMEOUT", "PROXY_PORT", "PROXY_HOST"]
    names = ["PROXY_QUEUETIMEOUT", "PROXY_HOST", "PROXY_COLOUR", "HOME", "MY_PROXY_PORT"]
    assert unknown_variables(names, "PROXY_", known) == {
        "PROXY_QUEUETIMEOUT": "PROXY_QUEUE_TIMEOUT",
        "PROXY_COLOUR": "",
    }
    assert unknown_variables(["WORKER_BASE_PATH"], "WORKER_", ["BASE_PATH", "WORKER_ID"]) == {
        "WORKER_BASE_PATH": "BASE_PATH"
    }


def test_the_logs_of_earlier_starts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    for number in range(5):
        keep_earlier(path, 3)
        path.write_text(str(number))
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {
        "worker-1.log": "4",
        "worker-1.log.1": "3",
        "worker-1.log.2": "2",
        "worker-1.log.3": "1",
    }
