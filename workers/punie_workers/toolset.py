"""Punie's tools as a pydantic-ai toolset. Arguments are checked by ours, not by pydantic."""

from typing import Any

import msgspec
from pydantic_ai import RunContext
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

from punie_protocol.tool_types import Permission
from punie_protocol.tool_views import parameters_schema
from punie_protocol.tools import TOOLS
from punie_workers.turn_tools import TurnTools


class _Unchecked:
    """Takes arguments as the model wrote them: what is wrong with them, `TurnTools` tells it."""

    def validate_json(self, input: str | bytes | bytearray, **_: Any) -> Any:
        """Return what the JSON says; text that is none as it is."""
        try:
            return msgspec.json.decode(input)
        except ValueError:
            return input

    def validate_python(self, input: Any, **_: Any) -> Any:
        """Return it as it is."""
        return input


_UNCHECKED = _Unchecked()
_DEFINITIONS = [
    ToolDefinition(
        name=tool.name,
        description=tool.doc,
        parameters_json_schema=parameters_schema(tool),
        sequential=tool.permission is not Permission.READ or not tool.code_mode,
    )
    for tool in TOOLS.values()
]


class PunieToolset(AbstractToolset[TurnTools]):
    """Every tool of `punie_protocol.tools`; the run's dependency runs them."""

    @property
    def id(self) -> str | None:
        return "punie"

    async def get_tools(self, ctx: RunContext[TurnTools]) -> dict[str, ToolsetTool[TurnTools]]:
        return {
            definition.name: ToolsetTool(
                toolset=self, tool_def=definition, max_retries=3, args_validator=_UNCHECKED
            )
            for definition in _DEFINITIONS
        }

    async def call_tool(
        self,
        name: str,
        tool_args: Any,
        ctx: RunContext[TurnTools],
        tool: ToolsetTool[TurnTools],
    ) -> Any:
        return await ctx.deps.call(name, tool_args)
