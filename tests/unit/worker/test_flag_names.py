"""The flags of vLLM are read from its source files, and misspelt ones are found."""

from pathlib import Path

import pytest

from worker_vllm.engine.base import EngineError
from worker_vllm.engine.flag_names import check_spelling, flags_in

ENGINE = """
def add_cli_args(parser):
    group.add_argument("--max-model-len", **kwargs["max_model_len"])
    group.add_argument(
        "--tensor-parallel-size",
        "-tp",
    )
    parser.add_argument(f"--{name}")
"""
SERVER = """
class BaseFrontendArgs:
    chat_template: str | None = None
    port = 8000

class Other:
    host: str
"""
KNOWN = frozenset({"--max-model-len", "--enforce-eager", "--compilation-config", "-tp"})


def package(folder: Path, engine: str = ENGINE, server: str = SERVER) -> Path:
    """Write a package with vLLM's two files."""
    for name, text in (("engine/arg_utils.py", engine), ("entrypoints/openai/cli_args.py", server)):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return folder


def test_flags_are_read_from_calls_and_fields(tmp_path: Path) -> None:
    found = flags_in(package(tmp_path)) - {"--help", "-h", "-O"}
    assert found == {"--max-model-len", "--tensor-parallel-size", "-tp", "--chat-template"}


def test_an_unknown_structure_gives_no_flags(tmp_path: Path) -> None:
    """A part of the list would reject flags that exist."""
    assert not flags_in(tmp_path / "absent")
    assert not flags_in(package(tmp_path / "engine", engine="pass"))
    assert not flags_in(package(tmp_path / "server", server="class Args: pass"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--max-model-length", r"no flag --max-model-length\. Did you mean --max-model-len\?"),
        ("--max_model_lenght=5", r"no flag --max-model-lenght\. Did you mean --max-model-len\?"),
        ("--enforce-eagre", "Did you mean --enforce-eager"),
        ("--compilation-confg.mode", "Did you mean --compilation-config"),
        ("--guided-decoding-backend", "removed the flag .*use STRUCTURED_OUTPUTS_CONFIG"),
        ("--swap-space", "removed the flag --swap-space$"),
    ],
)
def test_a_misspelt_flag_is_rejected_with_a_suggestion(word: str, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        check_spelling([word, "3"], KNOWN)


def test_other_words_are_left_to_the_parser_of_vllm() -> None:
    words = [
        "--max-model-len", "--max_model_len=4", "--no-enforce-eager", "--max-m",
        "--compilation-config.mode", "--nothing-like-any-of-them", "-tp", "2", '{"a": 1}',
    ]  # fmt: skip
    check_spelling(words, KNOWN)
    check_spelling(["--max-model-length"], frozenset())
