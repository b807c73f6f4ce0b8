"""The words that an OpenAPI document is put together from."""

import re
from typing import TypeAlias

Node: TypeAlias = dict[str, object]
"""An object of the document."""

_NO_LETTER = re.compile(r"[^A-Za-z0-9]+")


def ref(kind: str, name: str) -> Node:
    """A component by its name: `kind` is `schemas`, `responses`, `parameters` or `headers`."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Node:
    """A schema by its name."""
    return ref("schemas", name)


def as_json(of: Node) -> Node:
    """A body that is JSON."""
    return {"application/json": {"schema": of}}


def record(required: dict[str, Node], optional: dict[str, Node] | None = None) -> Node:
    """An object of ours: these fields and no others."""
    properties = required | (optional or {})
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


def whole(least: int, most: int | None = None, **more: object) -> Node:
    """A whole number within bounds."""
    bounds: Node = {"minimum": least} if most is None else {"minimum": least, "maximum": most}
    return {"type": "integer", **bounds, **more}


def operation_id(method: str, path: str) -> str:
    """The name of an operation, for generated clients and for links."""
    return _NO_LETTER.sub("_", f"{method.lower()}{path}").strip("_")
