"""The flags of the commands, made from settings: each setting has one, except those with secrets.

A secret is given by a file or a variable, because other users can read arguments. Values are passed
on as text; the settings of the proxy or of the worker parse and check them, so that one message
names the flag and the variable.
"""

import inspect
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.markup import escape

from proxy.cli.credentials import flag_of
from proxy.settings import Settings

Function = TypeVar("Function", bound=Callable[..., None])

FILE_SUFFIX = "_file"
PROXY_VARIABLES = [f"PROXY_{name.upper()}" for name in Settings.model_fields]
_KINDS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


class SettingFlag(NamedTuple):
    """A flag, the variable that it overrides, its meaning, and the default as text.

    `kind` stands for the value in the help, such as INTEGER.
    """

    name: str
    variable: str
    meaning: str
    default: str = ""
    kind: str = "TEXT"
    is_list: bool = False
    is_hidden: bool = False

    @property
    def help(self) -> str:
        """The meaning, and in brackets the variables and the default."""
        notes = [self.variable]
        if self.name.endswith(FILE_SUFFIX):
            notes.append(self.variable.removesuffix(FILE_SUFFIX.upper()))
        if self.default:
            notes.append(f"default {self.default}")
        repeatable = " Repeatable." if self.is_list else ""
        return f"{self.meaning}{repeatable} [{', '.join(notes)}]"


def proxy_flag(name: str) -> SettingFlag:
    """Return the flag of one of the proxy's settings. It is hidden if its value is a secret."""
    field = Settings.model_fields[name]
    types = _types(field.annotation)
    is_file = name.endswith(FILE_SUFFIX)
    return SettingFlag(
        name,
        f"PROXY_{name.upper()}",
        field.description or "",
        "" if is_file else _default(field),
        "PATH" if is_file else _kind(types),
        is_list=list in types,
        is_hidden=SecretStr in types and not is_file,
    )


def proxy_flags(*names: str) -> list[SettingFlag]:
    """Return the flags of these settings of the proxy, or of all that are not secrets."""
    flags = [proxy_flag(name) for name in names or Settings.model_fields]
    return [flag for flag in flags if names or not flag.is_hidden]


def option(flag: SettingFlag, panel: str | None = None) -> Any:
    """Return the annotation of the parameter of a command that receives the flag."""
    made = typer.Option(
        flag_of(flag.name),
        help=escape(flag.help),
        metavar=flag.kind,
        hidden=flag.is_hidden,
        show_default=False,
        rich_help_panel=panel,
    )
    return Annotated[list[str] | None, made] if flag.is_list else Annotated[str | None, made]


def with_flags(panel: str, flags: Iterable[SettingFlag]) -> Callable[[Function], Function]:
    """Add flags to a command: its function receives them as keyword arguments, None if not given.

    They are listed under `panel` in the help.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        added = [
            inspect.Parameter(
                flag.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=option(flag, panel),
            )
            for flag in flags
        ]
        # Typer makes its options from this signature.
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *added])
        return function

    return decorate


def _types(annotation: Any) -> list[Any]:
    """Return an annotation, and what it consists of: `int | None` is int and None."""
    found = [annotation, typing.get_origin(annotation)]
    for part in typing.get_args(annotation):
        found += _types(part)
    return found


def _kind(types: list[Any]) -> str:
    if Literal in types:
        return "|".join(str(part) for part in types if isinstance(part, str))
    return next((kind for of, kind in _KINDS.items() if of in types), "TEXT")


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
