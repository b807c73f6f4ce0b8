"""The cause of a failed start in the output of real workers (tests/data/failed_starts)."""

from pathlib import Path

import pytest

from proxy.cli.root_cause import CAUSE_MAX_LINES, SILENT, root_cause

LOGS = Path(__file__).parents[1] / "data" / "failed_starts"
CAUSES = {
    "no_compiler": (
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in "
        "torch._inductor.config.cpp.cxx: (None, 'g++')"
    ),
    "no_python_headers": (
        "torch._inductor.exc.InductorError: CppCompileError: C++ compile error\n"
        "/tmp/torchinductor_user/mb/cmbaewxd3mbswvmab42nuoiekapvlkak73dgfjkmfm225nzyp2au.main.cpp"
        ":46:10: fatal error: Python.h: No such file or directory"
    ),
    "truncated_weights": (
        "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: "
        "incomplete metadata, file not fully covered"
    ),
    "too_little_memory": (
        "ValueError: Available memory on node 0 (10.38/13.34 GiB) on kv cache allocation is less "
        "than requested memory for kv (500.0 GiB). Decrease --kv-cache-memory-bytes, "
        "VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
    ),
    "engine_killed": SILENT,
    "no_such_model": (
        "vLLM did not start: Cannot find an appropriate cached snapshot folder "
        "for the specified revision"
    ),
    "refused_setting": (
        "vLLM did not start: 1 validation error for ModelConfig\n"
        "Value error, User-specified max_model_len (2000000) is greater "
        "than the derived max_model_len"
    ),
}
TRACEBACK = "Traceback (most recent call last):"
CAUSE = "The above exception was the direct cause of the following exception:"
CONTEXT = "During handling of the above exception, another exception occurred:"
ENDED = "time=2026-11-27T13:42:30.617223Z level=info event=worker.ended code=1"


def lines(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8").splitlines()


def test_every_log_has_its_cause_here() -> None:
    assert {path.stem for path in LOGS.iterdir()} == CAUSES.keys()


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_of_a_real_failure(name: str) -> None:
    assert root_cause(lines(name)).startswith(CAUSES[name])
    assert len(root_cause(lines(name)).splitlines()) <= CAUSE_MAX_LINES


@pytest.mark.parametrize("name", ["no_compiler", "too_little_memory"])
def test_the_output_of_concurrent_processes_is_separated(name: str) -> None:
    log = lines(name)
    engine = [line for line in log if line.startswith("(EngineCore")]
    worker = [line for line in log if line.startswith("(Worker")]
    mixed = [line for pair in zip(worker, engine, strict=False) for line in pair] + worker[
        len(engine) :
    ]
    assert root_cause(mixed).startswith(CAUSES[name])


def chain(link: str) -> list[str]:
    first = [TRACEBACK, '  File "a.py", line 1, in a', "KeyError: 'qwen9'", ""]
    return [
        *first,
        link,
        "",
        TRACEBACK,
        '  File "b.py", line 2, in b',
        "ValueError: unknown model type",
    ]


def test_a_cause_is_followed_and_an_exception_that_was_handled_is_not() -> None:
    assert root_cause(chain(CAUSE)) == "KeyError: 'qwen9'"
    assert root_cause(chain(CONTEXT)) == "ValueError: unknown model type"


def test_the_workers_own_sentence_is_the_cause() -> None:
    said = [
        "anything",
        "MAX_MODEL_LEN is wrong: argument --max-model-len: invalid value: '5x'",
        ENDED,
    ]
    assert root_cause(said) == said[1]


def test_errors_after_the_end_are_not_the_cause() -> None:
    late = [
        "Exception ignored in: <function AsyncLLM.__del__>",
        TRACEBACK,
        "TypeError: 'NoneType' object is not callable",
    ]
    assert root_cause(["the cause", ENDED, *late]) == "the cause"


def test_a_worker_that_says_nothing_has_no_known_cause() -> None:
    stage = (
        'time=2026-11-27T13:42:30Z level=info event=worker.stage text="importing vLLM" seconds=0.0'
    )
    assert root_cause([]) == ""
    assert root_cause([stage, "a warning"]) == ""
    assert root_cause([stage, ENDED]) == ""
