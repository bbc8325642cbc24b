"""What is derived from a tool's definition: JSON schema, Python stub, decoded arguments."""

from types import NoneType
from typing import (
    Annotated,
    Any,
    Final,
    TypeAliasType,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.tool_types import Arguments, Result, Tool
from punie_protocol.tools import TOOLS

_CHECKER_HEAD: Final = """\
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any"""

_BUILTINS: Final = (
    "def map(function: Callable[..., Any], /, *values: Iterable[Any]) -> Iterator[Any]: ...",
    "def filter[T](test: Callable[[T], Any] | None, values: Iterable[T], /) -> Iterator[T]: ...",
    "def getattr(value: object, name: str, default: Any = ..., /) -> Any: ...",
    "def hasattr(value: object, name: str, /) -> bool: ...",
    "def setattr(value: object, name: str, new: Any, /) -> None: ...",
    'def format(value: object, spec: str = "", /) -> str: ...',
)
"""What the sandbox runs and its type checker does not know."""


def parameters_schema(tool: Tool) -> dict[str, Any]:
    """Return the JSON schema of the tool's arguments: a flat object, as models expect it."""
    (schema,), components = msgspec.json.schema_components((tool.arguments,), ref_template="{name}")
    name = schema["$ref"]
    properties = {
        key: _inline(value, components)
        for key, value in components[name]["properties"].items()
        if key != "type"
    }
    required = [key for key in components[name].get("required", ()) if key != "type"]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def decode_arguments(tool: Tool, arguments: dict[str, Any]) -> Arguments:
    """Return typed arguments. Raises `PunieError` that names the tool, the field and the reason."""
    try:
        return msgspec.convert(arguments, tool.arguments)
    except msgspec.ValidationError as error:
        raise PunieError(
            InvalidRequest(message=f"{tool.name}: {error}", hint=signature(tool))
        ) from None


def bind_arguments(tool: Tool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Return typed arguments of a Python call. Raises `PunieError` like `decode_arguments`."""
    names = [field.name for field in msgspec.structs.fields(tool.arguments)]
    if len(args) > len(names):
        raise PunieError(
            InvalidRequest(
                message=f"{tool.name} takes {len(names)} arguments, {len(args)} were given",
                hint=signature(tool),
            )
        )
    bound = dict(zip(names, args, strict=False))
    if twice := bound.keys() & kwargs.keys():
        raise PunieError(
            InvalidRequest(
                message=f"{tool.name} got {min(twice)!r} twice",
                hint=signature(tool),
            )
        )
    return decode_arguments(tool, bound | kwargs)


def signature(tool: Tool) -> str:
    """Return the tool as the head of a Python function."""
    hints = get_type_hints(tool.arguments)
    parts = [
        f"{field.name}: {_python_type(hints[field.name])}"
        + ("" if field.required else f" = {field.default!r}")
        for field in msgspec.structs.fields(tool.arguments)
    ]
    return f"def {tool.name}({', '.join(parts)}) -> {tool.result.__name__}"


def _brief_signature(tool: Tool) -> str:
    """Return the head as `signature` does, without the types that need not be said."""
    hints = get_type_hints(tool.arguments)
    parts: list[str] = []
    for field in msgspec.structs.fields(tool.arguments):
        kind = _python_type(hints[field.name])
        if field.required:
            parts.append(_brief(field.name, kind))
        elif kind == type(field.default).__name__:
            parts.append(f"{field.name}={field.default!r}")
        else:
            parts.append(f"{field.name}: {kind} = {field.default!r}")
    return f"def {tool.name}({', '.join(parts)}) -> {tool.result.__name__}"


def stubs(tools: list[Tool] | None = None) -> str:
    """Return the Python stub of the Code Mode functions for a type checker: their result classes,
    which cannot be changed, and the built-in functions that its own stubs lack."""
    chosen = _code_tools(tools)
    blocks = [_class_stub(cls) for cls in result_classes(chosen).values()]
    blocks += [f"{signature(tool)}:\n    '''{tool.doc}'''\n    ..." for tool in chosen]
    return "\n\n\n".join([_CHECKER_HEAD, *blocks, *_BUILTINS]) + "\n"


def prompt_stubs(tools: list[Tool] | None = None) -> str:
    """Return the same functions and classes as the model reads them: one line each, valid Python,
    the same bytes each time. A default says the type of its argument; what has none is a text."""
    chosen = _code_tools(tools)
    lines = [_class_line(cls) for cls in result_classes(chosen).values()]
    lines += [f"{_brief_signature(tool)}: ...  # {tool.doc}" for tool in chosen]
    return "\n".join(lines) + "\n"


def result_classes(tools: list[Tool] | None = None) -> dict[str, type[Result]]:
    """Return the result classes of the Code Mode functions by name, parts before wholes."""
    classes: dict[str, type[Result]] = {}
    for tool in _code_tools(tools):
        _collect(tool.result, classes)
    return classes


def _code_tools(tools: list[Tool] | None) -> list[Tool]:
    return [tool for tool in tools or TOOLS.values() if tool.code_mode]


def _collect(cls: type[Result], into: dict[str, type[Result]]) -> None:
    for hint in get_type_hints(cls).values():
        for part in get_args(hint):
            if isinstance(part, type) and issubclass(part, Result):
                _collect(part, into)
    into[cls.__name__] = cls


def _class_stub(cls: type[Result]) -> str:
    fields = [f"    {name}: {kind}" for name, kind in _fields(cls)]
    return "\n".join(["@dataclass(frozen=True)", f"class {cls.__name__}:", *fields])


def _class_line(cls: type[Result]) -> str:
    return f"class {cls.__name__}: {'; '.join(_brief(*field) for field in _fields(cls))}"


def _fields(cls: type[Result]) -> list[tuple[str, str]]:
    """Return names and types."""
    hints = get_type_hints(cls)
    names = [field.name for field in msgspec.structs.fields(cls)]
    return [(name, _python_type(hints[name])) for name in names]


def _brief(name: str, kind: str) -> str:
    return name if kind == "str" else f"{name}: {kind}"


def _python_type(hint: Any) -> str:
    if isinstance(hint, TypeAliasType):
        return _python_type(hint.__value__)
    if get_origin(hint) is Annotated:
        return _python_type(get_args(hint)[0])
    if get_origin(hint) is Union:
        return " | ".join(map(_python_type, get_args(hint)))
    if args := get_args(hint):
        return f"{get_origin(hint).__name__}[{', '.join(map(_python_type, args))}]"
    return "None" if hint is NoneType else hint.__name__


def _inline(schema: Any, components: dict[str, Any]) -> Any:
    if "$ref" not in schema:
        return schema
    return _inline(components[schema["$ref"]], components) | {
        key: value for key, value in schema.items() if key != "$ref"
    }
