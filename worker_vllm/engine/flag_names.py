"""The flags of the installed vLLM, from its source files. Importing vLLM for them takes seconds.

As a program it prints them: `python -m worker_vllm.engine.flag_names`. Two files define the flags:
`add_argument` calls name most of them, and the fields of the `…FrontendArgs` classes the others.
The list is empty if vLLM is not installed, if a file has another structure, or if a plugin of vLLM
may add flags; then only vLLM's own parser can tell which flags exist.
"""

import ast
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from worker_vllm.engine.base import EngineError
from worker_vllm.engine.flags import REMOVED_FLAGS

ENGINE_FILE = "engine/arg_utils.py"
# Where releases of vLLM define the flags of the server.
SERVER_FILES = (
    "entrypoints/common/cli_args.py",
    "entrypoints/launchers/cli_args.py",
    "entrypoints/openai/cli_args.py",
)
SERVER_CLASS_SUFFIX = "FrontendArgs"
PLUGIN_GROUPS = ("vllm.general_plugins", "vllm.platform_plugins")
# Of argparse and of vLLM's parser; they are not in the files.
PARSER_FLAGS = frozenset({"--help", "-h", "-O"})


def installed_flags() -> frozenset[str]:
    """Return the flags of the installed vLLM, with their leading dashes; empty if unknown."""
    spec = find_spec("vllm")
    if spec is None or not spec.origin or _has_plugin():
        return frozenset()
    return flags_in(Path(spec.origin).parent)


def _has_plugin() -> bool:
    """Return True if a package extends vLLM. Those of vLLM itself add no flags."""
    found = [plugin for name in PLUGIN_GROUPS for plugin in entry_points(group=name)]
    return any(not plugin.value.startswith("vllm.") for plugin in found)


def flags_in(package: Path) -> frozenset[str]:
    """Return the flags that the source files in vLLM's folder define; empty if one is missing."""
    server = next((name for name in SERVER_FILES if (package / name).is_file()), "")
    if not server or not (package / ENGINE_FILE).is_file():
        return frozenset()
    parts = [frozenset(_flags(package / name)) for name in (ENGINE_FILE, server)]
    return parts[0] | parts[1] | PARSER_FLAGS if all(parts) else frozenset()


def check_spelling(words: Sequence[str], known: frozenset[str]) -> None:
    """Raise EngineError if a word is certainly not a flag of vLLM, with the flag that was meant.

    A word that resembles no flag is left to vLLM's parser, as every word is if `known` is empty.
    """
    for word in words if known else ():
        name = plain_name(word)
        if not name.startswith("--") or is_flag(name, known):
            continue
        removed = name.removeprefix("--").replace("-", "_").upper()
        if removed in REMOVED_FLAGS:
            use = REMOVED_FLAGS[removed]
            raise EngineError(f"vLLM has removed the flag {name}" + (use and f"; use {use}"))
        close = get_close_matches(name, known, n=1)
        if close:
            raise EngineError(f"vLLM has no flag {name}. Did you mean {close[0]}?")


def plain_name(word: str) -> str:
    """Return the flag in a word of the command line as vLLM spells it: `--max_model_len=5`."""
    return word.partition("=")[0].partition(".")[0].replace("_", "-")


def flag_of(name: str) -> str:
    """Return the flag with the name of a variable or field: `--max-model-len`."""
    return f"--{name.lower().replace('_', '-')}"


def is_flag(name: str, known: frozenset[str]) -> bool:
    """Return True for a flag, its `--no-` form, and an abbreviation, which the parser accepts."""
    return any(
        flag.startswith(name) or (flag.startswith("--") and f"--no-{flag[2:]}".startswith(name))
        for flag in known
    )


def _flags(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=args):
                for argument in args:
                    match argument:
                        case ast.Constant(value=str(text)) if text.startswith("-"):
                            yield text
            case ast.ClassDef(name=name, body=body) if name.endswith(SERVER_CLASS_SUFFIX):
                for statement in body:
                    match statement:
                        case ast.AnnAssign(target=ast.Name(id=field)):
                            yield flag_of(field)


if __name__ == "__main__":
    print("\n".join(sorted(installed_flags())))
