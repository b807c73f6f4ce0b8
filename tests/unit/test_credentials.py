"""Options for keys and tokens on the command line, run within the test's process."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from proxy.cli.commands import cli
from proxy.cli.credentials import overridden

KEY = "open-sesame-1"
COMMANDS = ("up", "proxy", "worker", "chat", "doctor", "worker-env")


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command; return its exit status and its output."""
    ended = CliRunner().invoke(cli, arguments, env={"COLUMNS": "200", **environment})
    return ended.exit_code, ended.output


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_has_an_option_with_a_secret_as_its_value(name: str) -> None:
    status, text = run(name, "--help", TERM="dumb")
    assert status == 0
    assert re.search(r"--(api-key|worker-token|token)-file\b", text)
    assert not re.search(r"--(api-key|worker-token|token)[^-\w]", text)


@pytest.mark.parametrize("flag", ["--env-file", "--docker"])
def test_a_flag_overrides_the_variable_of_the_other_source(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(KEY)
    file = ("--worker-token-file", str(path))
    for given, environment in (
        (file, {"PROXY_WORKER_TOKEN": "not-this-one"}),
        (("--worker-token", KEY), {"PROXY_WORKER_TOKEN_FILE": str(tmp_path / "nothing")}),
        ((), {"PROXY_WORKER_TOKEN_FILE": str(path)}),
    ):
        status, text = run("worker-env", *given, flag, **environment)
        assert (status, text.count(f"RUNPOD_AI_API_KEY={KEY}")) == (0, 1)
    status, text = run("worker-env", *file, "--worker-token", KEY)
    assert status == 2
    assert "both set" in text


def test_the_output_is_a_valid_env_file_for_docker(tmp_path: Path) -> None:
    status, text = run("worker-env", "mine", "--env-file", PROXY_DATA_DIR=str(tmp_path))
    assert status == 0
    assert not [
        line for line in text.splitlines() if not re.fullmatch(r"[A-Z_]+=[\w:/$?.=-]+", line)
    ]
    assert (
        "RUNPOD_WEBHOOK_GET_JOB=http://127.0.0.1:8000/v2/mine/job-take/$ID?gpu=any"
        in text.splitlines()
    )


@pytest.mark.parametrize(
    "command", ["proxy --api-key-file", "chat --api-key-file", "doctor --token-file"]
)
def test_an_unusable_file_is_reported_in_one_line(tmp_path: Path, command: str) -> None:
    path = tmp_path / "keys"
    path.write_text(KEY)
    path.chmod(0o640)
    status, text = run(*command.split(), str(path), WORKER_CONNECT="")
    assert status == 2
    assert re.fullmatch(
        r"vllm-serverless: --.*-file.*: .*/keys is open to other users \(mode 0640\)\. Run: .*\n",
        text,
    )
    assert KEY not in text


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (("proxy", "--api-key-file", "{file}"), ""),
        (("proxy", "--worker-token-file", "{file}"), ""),
        (("chat", "--api-key-file", "{file}"), ""),
        (("chat",), "OPENAI_API_KEY"),
        (("doctor", "--connect", "http://127.0.0.1:9"), "WORKER_TOKEN"),
    ],
)
def test_a_secret_that_no_header_can_carry_is_refused_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], variable: str
) -> None:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text("clé-secrète-1234")
    given = [argument.format(file=path) for argument in arguments]
    environment = {variable: "clé-secrète-1234"} if variable else {}
    status, text = run(*given, **environment)
    assert status == 78
    assert re.fullmatch(r"vllm-serverless: .*(ASCII characters).*\n", text)
    assert "1234" not in text


def test_only_the_other_source_is_overridden() -> None:
    assert overridden("token", {"token": "x"}) == {"token_file": None}
    assert overridden("token", {"token_file": "x"}) == {"token": None}
    assert overridden("token", {}) == overridden("token", {"token": 1, "token_file": 2}) == {}
