"""Turns on a real journal, with everything else faked."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from msgspec import Raw

from punie_protocol.errors import ModelUnavailable, PunieError
from punie_protocol.messages.common import Isolation
from punie_supervisor import acp, router
from punie_supervisor import journal_ops as ops
from punie_supervisor.journal import Journal
from punie_supervisor.registry import Registry
from punie_supervisor.turns import Turns


class NoModel:
    """A model that is never there."""

    async def hold(self, *_: Any) -> None:
        raise PunieError(ModelUnavailable(message="there is no model"))


class Mailbox:
    """Keeps the errors that requests are answered with; `told` is called at each."""

    def __init__(self) -> None:
        self.errors: dict[int, dict[str, Any]] = {}
        self.told: Callable[[], None] = lambda: None

    def deliver(self, deliveries: list[router.Delivery]) -> None:
        for delivery in deliveries:
            assert isinstance(delivery, router.Send)
            body = json.loads(delivery.body)
            if "error" in body:
                self.errors[body["id"]] = body["error"]["data"]["punie"]
                self.told()

    def attach(self, connection: int, session_id: str) -> None:
        pass


def prompt(id: int) -> router.Prompt:
    raw = b'{"sessionId":"s","prompt":[],"_meta":{"punie":{"promptId":"p"}}}'
    return router.Prompt(1, id, msgspec.json.decode(raw, type=acp.Prompt), Raw(raw))


async def turns_of(journal: Journal, mailbox: Mailbox) -> Turns:
    await journal.run(ops.ensure_project, "p", "/p", Isolation.PROCESS)
    await journal.run(ops.create_session, "s", "p")
    registry = Registry(journal, Isolation.PROCESS)
    nobody = cast(Any, None)
    return Turns(journal, registry, cast(Any, NoModel()), nobody, router.Router(), mailbox)


def test_a_prompt_id_repeated_in_the_moment_of_its_answer_is_answered(tmp_path: Path):
    async def scenario() -> None:
        journal, mailbox = await Journal.open(tmp_path / "j.db"), Mailbox()
        turns = await turns_of(journal, mailbox)
        again: list[asyncio.Task[object]] = []

        def repeat() -> None:
            if not again:
                again.append(asyncio.create_task(turns.prompt(prompt(2))))

        mailbox.told = repeat
        async with asyncio.timeout(10):
            await turns.prompt(prompt(1))
            await asyncio.gather(*again)
        assert mailbox.errors[1] == mailbox.errors[2]
        assert mailbox.errors[1]["message"] == "there is no model"
        await journal.close()

    asyncio.run(scenario())


def test_an_outcome_that_cannot_be_stored_is_not_given_as_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario() -> None:
        journal, mailbox = await Journal.open(tmp_path / "j.db"), Mailbox()
        turns = await turns_of(journal, mailbox)
        monkeypatch.setattr(ops, "finish_prompt", full)
        async with asyncio.timeout(10):
            await turns.prompt(prompt(1))
            await turns.prompt(prompt(2))
        assert "disk is full" in mailbox.errors[1]["message"]
        assert "could not be stored" in mailbox.errors[2]["message"]
        await journal.close()

    asyncio.run(scenario())
