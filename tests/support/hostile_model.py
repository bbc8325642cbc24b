"""A model that attacks: it makes the calls of a case, whatever it is told, and ends its turn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from punie_protocol.messages.to_model_host import ToolMessage
from punie_protocol.permissions import Answer, PromptPermissions, TrustAnswer
from punie_protocol.project_settings import settings_digest
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.questions import Question
from punie_protocol.testing.script import Call, Reply, reply, say
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_protocol.tool_types import Permission
from tests.support.escape_ground import Case, Ground


def script(ground: Ground, case: Case) -> list[Reply]:
    """Return the replies: one call each."""
    calls = [Call(call.tool, ground.filled(call.arguments)) for call in case.calls]
    return [*map(reply, calls), say("done")]


class Told(msgspec.Struct):
    """What became of the calls: what the model was told of each, and all that a client saw; or why
    there was no turn at all."""

    answers: list[str]
    seen: list[str]
    refused: str = ""


def _no(question: Question) -> str:
    """Reject calls, and leave the project's own settings out of account."""
    options = (Answer.REJECT_ONCE, TrustAnswer.IGNORE)
    return next(option for option in options if option in question.options)


def _trusted(case: Case) -> str:
    """Return what the user's trust is bound to: settings that the project had."""
    return settings_digest({name: text.encode() for name, text in case.trusted.items()})


async def attack(folder: Path, ground: Ground, case: Case) -> Told:
    """Have the model attack through a real worker; its socket is in `folder`."""
    socket = folder / "host.sock"
    replies = script(ground, case)
    allow = [Permission(name) for name in case.allow]
    async with (
        ScriptedHost(socket, replies) as host,
        FakeClient(socket, policy=_no) as client,
    ):
        await client.open_project(ground.project, trusted=_trusted(case))
        await client.new_session()
        turn = await client.prompt("go", permissions=PromptPermissions(allow=allow))
        if isinstance(turn.response.error, msgspec.Raw):
            return Told([], [], bytes(turn.response.error).decode())
        assert turn.text() == "done"
        messages = host.requests[-1].messages
        answers = [message.text for message in messages if isinstance(message, ToolMessage)]
        return Told(answers, list(texts(client.updates["s1"])))


def texts(value: Any) -> Sequence[str]:
    """Return every text in a value made of builtins."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for one in value.values() for text in texts(one)]
        case list():
            return [text for one in value for text in texts(one)]
        case _:
            return []
