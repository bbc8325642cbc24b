"""What a tool is: the bases of its arguments and results, its permission class."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from punie_protocol.limits import MAX_PATH, MAX_PATTERN

type Path = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_PATH,
        description="Path relative to the project root.",
    ),
]
type Glob = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_PATTERN,
        description='File name pattern; "*.py" matches at any depth, "{a,b}" either.',
    ),
]


class Permission(StrEnum):
    """What a tool may do; the permission policy decides by it."""

    READ = "read"
    EDIT = "edit"
    EXECUTE = "execute"
    NETWORK = "network"


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of argument sets; fields in the order of the positional call."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of results."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool. `code_mode` says whether it is a function inside `execute_code`."""

    name: str
    arguments: type[Arguments]
    result: type[Result]
    permission: Permission
    code_mode: bool = True

    @property
    def doc(self) -> str:
        """What it does, in one or two sentences, as the model reads it."""
        return " ".join((self.arguments.__doc__ or "").split())


def define(
    arguments: type[Arguments],
    result: type[Result],
    permission: Permission = Permission.READ,
    *,
    code_mode: bool = True,
) -> Tool:
    """Return the tool that the tag of `arguments` names."""
    tag = arguments.__struct_config__.tag
    assert isinstance(tag, str)
    return Tool(
        name=tag,
        arguments=arguments,
        result=result,
        permission=permission,
        code_mode=code_mode,
    )
