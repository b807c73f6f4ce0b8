"""The language rules of CONTRIBUTING.md, as far as a program can check them."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("proxy", "worker_vllm", "tests", "scripts", "benchmarks")
# These contain the phrases as data.
DATA = {
    ROOT / "tests/unit/test_style.py",
    ROOT / "scripts/demo_model/dataset.py",
    ROOT / "CONTRIBUTING.md",
}
CODE = sorted({path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")} - DATA)
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
        *(ROOT / "worker_vllm").rglob("*.md"),
    }
    - DATA
)

REJECTED = (
    r"\btold\b",
    r"\b(is|are) no\b(?! longer)",
    r"\banew\b",
    r"\bmend(s|ed|ing)?\b",
    r"\bfor ever\b",
    r"\b(no|some)body('s)?\b",
    r"\bwhoever\b",
    r"\bstands? still\b",
    r"\bin the books\b",
    r"\bas (it|they) likes?\b",
    r"\ba most\b",
    r"\bso (many|much)\b",
    r"\bso long\b(?! as)",
    r"\bno more\b(?=[.,;:)]|$)",
    r"\bunder way\b",
    r"\ball the same\b",
    r"\bjust now\b",
    r"\bhears of\b",
    r"\bspeaks\b",
    r"\bhas a way\b",
    r"\bhouse\b",
)
PHRASES = re.compile("|".join(REJECTED), re.IGNORECASE | re.MULTILINE)
QUESTION = re.compile(r"(What|How|Who|Whom|Whose|Whether|Which|Where|Why|When)\b")
FILLER = {"the", "a", "an", "of", "this", "that", "its", "it", "is", "and", "or", "to", "for", "in"}


class Text(NamedTuple):
    """A piece of prose and its place."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.text.strip()[:120]}"


def without_code(text: str) -> str:
    """Return the text with everything in backticks removed, since identifiers are not prose."""
    return re.sub(r"`[^`\n]*`", "``", text)


def docstrings(path: Path) -> Iterator[tuple[ast.AST, Text]]:
    """Yield the documented nodes of a module, and their docstrings.

    A string below an assignment is the docstring of its target: a field or a constant.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, Text(path, node.body[0].lineno, text)
        body = getattr(node, "body", None)
        # The body of a lambda is an expression.
        for target, following in pairwise(body if isinstance(body, list) else ()):
            if (
                isinstance(target, ast.Assign | ast.AnnAssign)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                yield target, Text(path, following.lineno, following.value.value)


def strings(path: Path) -> Iterator[Text]:
    """Yield every string literal of at least two words: messages, help texts, docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield Text(path, node.lineno, node.value)


def comments(path: Path) -> Iterator[Text]:
    """Yield every comment that is not a directive for a tool. Adjacent lines are one comment."""
    lines: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type != tokenize.COMMENT or re.match(r"#\s*(noqa|type:|fmt)", token.string):
            continue
        number = token.start[0]
        if lines and number != last + 1:
            yield Text(path, last, " ".join(lines))
            lines = []
        lines.append(token.string.removeprefix("#").strip())
        last = number
    if lines:
        yield Text(path, last, " ".join(lines))


def names_of_tests(path: Path) -> Iterator[Text]:
    """Yield the names of test functions as sentences."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test_"
        ):
            yield Text(path, node.lineno, node.name.replace("_", " "))


def paragraphs(path: Path) -> Iterator[Text]:
    """Yield the paragraphs of a page that are not in a code block, as one line each."""
    is_code = False
    lines: list[str] = []
    for number, line in enumerate([*path.read_text().splitlines(), ""], 1):
        is_fence = line.startswith("```")
        if is_fence or not line.strip():
            yield Text(path, number - len(lines), " ".join(lines))
            lines = []
        elif not is_code:
            lines.append(line.strip())
        is_code ^= is_fence


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CODE, ids=named)
def test_code_uses_plain_english(path: Path) -> None:
    texts = [*strings(path), *comments(path), *names_of_tests(path)]
    found = [text for text in texts if PHRASES.search(" ".join(without_code(text.text).split()))]
    for node, text in docstrings(path):
        if QUESTION.match(text.text) or repeats_name(node, text.text):
            found.append(text)
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_pages_use_plain_english(path: Path) -> None:
    found = [text for text in paragraphs(path) if PHRASES.search(without_code(text.text))]
    assert not found, "\n".join(map(str, found))


def repeats_name(node: ast.AST, text: str) -> bool:
    """Return True if all words of a docstring, except fillers, occur in the documented name."""
    name = getattr(node, "name", None)
    if name is None:
        return False
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    words = {stem(word) for word in re.findall(r"[A-Za-z]+", text)} - {
        stem(word) for word in FILLER
    }
    return words <= {stem(part) for part in parts}


def stem(word: str) -> str:
    """Return a word without the endings of English plurals and verbs."""
    return re.sub(r"(ing|ed|es|s|e)$", "", word.lower())


@pytest.mark.parametrize(
    ("text", "is_rejected"),
    [
        ("the client is told", True),
        ("this is no request", True),
        ("it is no longer needed", False),
        ("so long as it lasts", False),
        ("no more than ten", False),
        ("there are no more.", True),
        ("the parser's `told` function", False),
    ],
)
def test_the_phrases_are_found(text: str, *, is_rejected: bool) -> None:
    assert bool(PHRASES.search(without_code(text))) == is_rejected


def test_a_docstring_that_repeats_the_name_is_found() -> None:
    node = ast.parse("def read_settings(): pass").body[0]
    assert repeats_name(node, "Reads the settings.")
    assert not repeats_name(node, "Return the settings of the environment.")


def test_the_docstring_of_a_field_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('class Job:\n    status: str\n    """How it is."""\n    size = 1\n')
    assert [text.text for _, text in docstrings(module)] == ["How it is."]
