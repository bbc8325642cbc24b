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

from punie_protocol.errors import ModelUnavailable, ProcessLost, PunieError, WireError
from punie_protocol.messages.common import Isolation
from punie_supervisor import acp, router
from punie_supervisor import journal_ops as ops
from punie_supervisor import journal_projects as projects
from punie_supervisor.child_spec import MODEL_HOST
from punie_supervisor.journal import Journal
from punie_supervisor.registry import Registry
from punie_supervisor.turn import MAX_RESUMES, Phase, Turn, error_raw, with_fault
from punie_supervisor.turns import Turns


class NoModel:
    """A model that is never there."""

    name = "none"

    def check(self, model: str | None) -> None:
        pass

    async def obtain(self, *_: Any) -> None:
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
    await journal.run(projects.ensure_project, "p", "/p", Isolation.PROCESS)
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


WORKER_LOST = ProcessLost(message="lost", process="worker-1", pid=1)


@pytest.mark.parametrize(
    ("error", "resumes", "state", "goes_on"),
    [
        (WORKER_LOST, 0, {}, True),
        (WORKER_LOST, MAX_RESUMES - 1, {}, True),
        (WORKER_LOST, MAX_RESUMES, {}, False),
        (WORKER_LOST, 0, {"cancelled": True}, False),
        (WORKER_LOST, 0, {"left": True}, False),
        (WORKER_LOST, 0, {"fault": WORKER_LOST}, False),
        (ProcessLost(message="lost", process=MODEL_HOST, pid=1), 0, {}, False),
        (ProcessLost(message="given up", process="worker-1", pid=0), 0, {}, False),
        (ModelUnavailable(message="none"), 0, {}, False),
    ],
)
def test_what_a_turn_goes_on_after(
    error: WireError, resumes: int, state: dict[str, Any], goes_on: bool
):
    async def scenario() -> None:
        turn = Turn("p", "s", None, Raw(b"{}"))
        turn.become(Phase.WAITING)
        for _ in range(resumes):
            turn.become(Phase.RUNNING)
            turn.resume()
            assert await turn.lost_or_ended()
        for name, value in state.items():
            setattr(turn, name, value)
        assert turn.may_resume(error) is goes_on
        turn.end()
        assert not await turn.lost_or_ended()

    asyncio.run(scenario())


def test_a_prompt_without_our_members_keeps_its_bytes():
    raw = Raw(b'{"sessionId": "s",  "_meta":{"punie":{"promptId":"p"}}}')
    assert acp.from_a_client(raw, acp.params(raw, acp.Prompt).punie) is raw


def test_members_of_the_supervisor_are_taken_out_of_a_prompt_and_nothing_else():
    raw = Raw(
        b'{"prompt":[1.50],"_meta":{"other":1.50,"punie":{"backend":{"url":"u"},"queueMs":1,'
        b'"x":1.50,"resume":{"attempt":1,"stored":0}}}}'
    )
    meta = acp.params(Raw(bytes(raw)[:-1] + b',"sessionId":"s"}'), acp.Prompt).punie
    left = acp.from_a_client(raw, meta)
    assert bytes(left) == b'{"prompt":[1.50],"_meta":{"other":1.50,"punie":{"x":1.50}}}'


def test_an_error_is_told_better_and_keeps_what_else_it_says() -> None:
    worse, better = ModelUnavailable(message="gone"), ModelUnavailable(message="exited, code 3")
    plain = json.loads(bytes(error_raw(worse)))
    plain["data"]["meta"] = {"promptId": "p"}
    told = json.loads(bytes(with_fault(Raw(json.dumps(plain).encode()), lambda _: better)))
    assert told["message"] == told["data"]["punie"]["message"] == "exited, code 3"
    assert told["data"]["meta"] == {"promptId": "p"}
    for untouched in (error_raw(worse), Raw(b'{"code": 1, "message": "m"}'), Raw(b"[]")):
        assert with_fault(untouched, lambda fault: fault) == untouched
