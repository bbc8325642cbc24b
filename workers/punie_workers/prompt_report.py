"""What a model is told before the first prompt, part by part, with tokens."""

import math
from collections.abc import Awaitable, Callable
from typing import Final

from punie_protocol.backends import Backend
from punie_protocol.client import PromptPart, PromptReport
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_protocol.messages.to_model_host import AnyChatMessage, SystemMessage, UserMessage
from punie_workers.models import Models
from punie_workers.prompts import CORE, Instructions, ProjectParts, instructions, stub_part

CHARACTERS_PER_TOKEN: Final = 3.6
"""For servers, whose tokenizers cannot be asked."""

type _Count = Callable[[Instructions], Awaitable[int]]


async def describe(
    models: Models, info: ModelInfo, backend: Backend | None, parts: ProjectParts
) -> PromptReport:
    """Return what `info` is told in the project `parts`. The tokens of a part are what it adds to
    those before it, the first one's include what the chat template adds to any conversation; they
    sum up to the report's. Raises `PunieError`."""
    told = instructions(info, parts)
    exact = backend is None
    count: _Count = _counted_by(models) if exact else _guessed
    sized = [(name, text, await count(so_far)) for name, text, so_far in _growing(info, told)]
    before = [0, *(tokens for _, _, tokens in sized)]
    return PromptReport(
        model=info.name,
        style=info.prompt_style,
        exact=exact,
        tokens=before[-1],
        parts=[
            PromptPart(name=name, text=text, tokens=tokens - before[at])
            for at, (name, text, tokens) in enumerate(sized)
        ],
    )


def _growing(info: ModelInfo, told: Instructions) -> list[tuple[str, str, Instructions]]:
    """Return each part: its name, its text, and the instructions up to and with it."""
    if info.prompt_style is PromptStyle.LEARNED:
        return [("core", "", told)]
    tools = "\n".join(f"{tool.name}: {tool.parameters}" for tool in told.tools)
    return [
        ("core", CORE, Instructions(CORE, (), "")),
        ("stubs", stub_part(), Instructions(told.system, (), "")),
        ("tools", tools, Instructions(told.system, told.tools, "")),
        ("project", told.context, told),
    ]


def _counted_by(models: Models) -> _Count:
    async def count(told: Instructions) -> int:
        return await models.client.count(_conversation(told), told.tools)

    return count


def _conversation(told: Instructions) -> list[AnyChatMessage]:
    """Return what is sent with a prompt without words: some templates want one."""
    chat: list[AnyChatMessage] = [SystemMessage(text=told.system)] if told.system else []
    if told.context:
        chat.append(UserMessage(text=told.context))
    return [*chat, UserMessage(text="")]


async def _guessed(told: Instructions) -> int:
    tools = sum(
        len(tool.name) + len(tool.description) + len(tool.parameters) for tool in told.tools
    )
    characters = len(told.system) + tools + len(told.context)
    return math.ceil(characters / CHARACTERS_PER_TOKEN)
