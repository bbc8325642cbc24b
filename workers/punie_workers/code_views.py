"""How typed results look inside the sandbox: read-only objects with attributes."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from pydantic_monty import ClassInstance

from punie_protocol.tools import TOOLS, Result

CODE_TOOLS: Final = frozenset(tool.name for tool in TOOLS.values() if tool.code_mode)


class _View(ClassInstance):
    def convert_value(self, /, name: str, value: Any) -> Any:
        return view(value)


def view(value: Any) -> Any:
    """Return `value` ready for the sandbox: each `Result` in it with all its attributes."""
    match value:
        case Result():
            names = [field.name for field in msgspec.structs.fields(value)]
            return _View(value, eager_attrs=names)
        case list():
            return [view(item) for item in value]
        case _:
            return value


def _stand_in(name: str) -> Callable[..., Any]:
    """Return what a tool is as a value (``map(read_file, files)``); the sandbox only takes its
    name and asks for each call."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(name)

    function.__name__ = function.__qualname__ = name
    return function


STAND_INS: Final = {name: _stand_in(name) for name in CODE_TOOLS}
