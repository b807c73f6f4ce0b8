"""vLLM's own parser and the names that variables have for its flags."""

import json
import subprocess
import sys
from typing import Any

import pytest
from harness.worker.process import ROOT, environment, worker_process

from worker_vllm.engine.flag_names import installed_flags, is_flag
from worker_vllm.engine.flags import ALIASES, RESERVED_NAMES, SERVER_FLAG_NAMES

CASES: list[tuple[dict[str, str], dict[str, Any] | str]] = [
    ({"MODEL_NAME": "/m.x/y", "MAX_MODEL_LEN": "32k"}, {"model": "/m.x/y", "max_model_len": 32000}),
    (
        {"ENFORCE_EAGER": "true", "ENABLE_PREFIX_CACHING": "off"},
        {"enforce_eager": True, "enable_prefix_caching": False},
    ),
    ({"DISABLE_LOG_STATS": "1", "TRUST_REMOTE_CODE": "false"}, {"disable_log_stats": True}),
    ({"OPENAI_SERVED_MODEL_NAME_OVERRIDE": "a,b"}, {"served_model_name": ["a", "b"]}),
    ({"CUDAGRAPH_CAPTURE_SIZES": "1,2,4"}, {"cudagraph_capture_sizes": [1, 2, 4]}),
    ({"IGNORE_PATTERNS": "original/**/*,*.pth"}, {"ignore_patterns": ["original/**/*", "*.pth"]}),
    ({"LIMIT_MM_PER_PROMPT": '{"image": 2}'}, {"limit_mm_per_prompt": {"image": 2}}),
    ({"SPECULATIVE_CONFIG": '{"model": "x"}'}, {"speculative_config": {"model": "x"}}),
    ({"GPU_MEMORY_UTILIZATION": "0.5", "SEED": "3"}, {"gpu_memory_utilization": 0.5, "seed": 3}),
    ({"MIDDLEWARE": "a.b"}, {"middleware": ["a.b"]}),
    ({"QUANTIZATION": "None", "MAX_NUM_BATCHED_TOKENS": "0"}, {}),
    ({"VLLM_EXTRA_ARGS": "--dtype bfloat16", "DTYPE": "float16"}, {"dtype": "bfloat16"}),
    (
        {
            "HF_TOKEN": "hf_x",
            "API_KEY": "x",
            "HOST": "h",
            "PORT": "tcp://10.0.0.1:80",
            "LOG_LEVEL": "info",
        },
        {},
    ),
    ({"DTYPE": "int3"}, "DTYPE is wrong: argument --dtype: invalid choice: 'int3'"),
    (
        {"LORA_MODULES": '[{"nam": "a"}]'},
        "LORA_MODULES is wrong: Invalid fields for --lora-modules",
    ),
    ({"VLLM_CONFIG_FILE": "/nowhere.yaml"}, "VLLM_CONFIG_FILE is wrong: [Errno 2] No such file"),
]


@pytest.fixture(scope="module")
def parsed() -> dict[str, Any]:
    """Parse all cases with vLLM's parser, in one process because importing vLLM takes seconds."""
    cases = json.dumps([variables for variables, _ in CASES])
    command = [sys.executable, "-m", "tests.harness.worker.vllm_flags"]
    ended = subprocess.run(
        command, cwd=ROOT, input=cases, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_every_flag_has_a_variable_unless_its_name_is_reserved(parsed: dict[str, Any]) -> None:
    positive = [
        option
        for options in parsed["options"]
        for option in options
        if option.startswith("--")
        and option.replace("--no-", "--", 1) not in set(options) - {option}
    ]
    names = {option[2:].replace("-", "_").upper() for option in positive}
    assert len(names) > 250
    assert set(parsed["variables"]) == (names - RESERVED_NAMES - SERVER_FLAG_NAMES) | set(ALIASES)


def test_the_flags_in_the_source_files_are_those_of_the_parser(parsed: dict[str, Any]) -> None:
    known = installed_flags()
    options = {option for options in parsed["options"] for option in options}
    assert [option for option in sorted(options) if not is_flag(option, known)] == []
    assert known - options == {"-O"}


async def test_a_misspelt_flag_ends_the_worker_before_vllm_is_imported() -> None:
    variables = environment(engine="vllm", model="demo", connect="http://127.0.0.1:9")
    async with worker_process("--max-model-length", "100", variables=variables) as worker:
        assert await worker.process.wait() == 1
    text = "\n".join(worker.lines)
    assert "vLLM has no flag --max-model-length. Did you mean --max-model-len?" in text
    assert "importing vLLM" not in text


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[" ".join(variables) for variables, _ in CASES]
)
def test_variables_set_the_flags_of_vllm(parsed: dict[str, Any], number: int) -> None:
    expected, answer = CASES[number][1], parsed["answers"][number]
    if isinstance(expected, str):
        assert isinstance(answer, str)
        assert answer.startswith(expected)
    else:
        assert answer == expected
