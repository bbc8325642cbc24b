"""Punie's tools as a pydantic-ai toolset. Arguments are checked by ours, not by pydantic."""

from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator, core_schema

from punie_protocol.tool_types import Permission
from punie_protocol.tool_views import parameters_schema
from punie_protocol.tools import TOOLS
from punie_workers.turn_tools import TurnTools

_ANY = SchemaValidator(core_schema.any_schema())
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
                toolset=self, tool_def=definition, max_retries=3, args_validator=_ANY
            )
            for definition in _DEFINITIONS
        }

    async def call_tool(
        self,
        name: str,
        tool_args: dict[str, Any],
        ctx: RunContext[TurnTools],
        tool: ToolsetTool[TurnTools],
    ) -> Any:
        return await ctx.deps.call(name, tool_args)
