"""The journal, on a real file."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from punie_protocol.client import PerfReport
from punie_protocol.errors import PunieError
from punie_protocol.messages.common import Isolation
from punie_protocol.permissions import Grant, Mode
from punie_supervisor import journal_ops as ops
from punie_supervisor import journal_projects as projects
from punie_supervisor import perf
from punie_supervisor.journal import Journal
from punie_supervisor.journal_ops import PromptState
from punie_supervisor.journal_schema import MIGRATIONS


def with_journal(path: Path, work: Callable[[Journal], Awaitable[None]]) -> None:
    async def run() -> None:
        journal = await Journal.open(path)
        try:
            await work(journal)
        finally:
            await journal.close()

    asyncio.run(run())


async def fill(journal: Journal, *sessions: str) -> None:
    await journal.run(projects.ensure_project, "p", "/p", Isolation.PROCESS)
    for session in sessions:
        await journal.run(ops.create_session, session, "p")
        await journal.run(ops.accept_prompt, f"prompt-{session}", session, b"{}", "title")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=40)), max_size=40))
def test_deltas_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[str, bytes]]
):
    path = tmp_path_factory.mktemp("j") / "journal.db"

    async def write(journal: Journal) -> None:
        await fill(journal, "a", "b")
        count = {"a": 0, "b": 0}
        futures = []
        for session, data in written:
            prompt = f"prompt-{session}"
            futures.append(
                await journal.submit(ops.store_delta, session, count[session], prompt, data)
            )
            count[session] += 1
        for future in futures:
            await future

    async def read(journal: Journal) -> None:
        for session in "ab":
            expected = [data for name, data in written if name == session]
            assert await journal.run(ops.deltas, session) == expected

    with_journal(path, write)
    with_journal(path, read)


def test_a_delta_out_of_turn_is_refused_alone(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        futures = [
            await journal.submit(ops.store_delta, "s", ordinal, "prompt-s", bytes([ordinal]))
            for ordinal in (0, 2, 0, 1)
        ]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        refused = [isinstance(outcome, PunieError) for outcome in outcomes]
        assert refused == [
            False,
            True,
            True,
            False,
        ]
        assert await journal.run(ops.deltas, "s") == [b"\0", b"\1"]

    with_journal(tmp_path / "j.db", work)


def test_results_arrive_in_the_order_of_submission(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        order: list[int] = []
        futures = [
            await journal.submit(ops.append_update, "s", "prompt-s", b"{}") for _ in range(2000)
        ]
        for future in futures:
            future.add_done_callback(lambda done: order.append(done.result()))
        await asyncio.gather(*futures)
        assert order == list(range(1, 2001))

    with_journal(tmp_path / "j.db", work)


def test_a_prompt_goes_through_its_states_once(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        await journal.run(ops.mark_running, "prompt-s")
        done = ("prompt-s", PromptState.DONE, "end_turn", b"{}", None)
        await journal.run(ops.finish_prompt, *done)
        with pytest.raises(PunieError, match="not open"):
            await journal.run(ops.finish_prompt, *done)
        known = await journal.run(ops.accept_prompt, "prompt-s", "s", b"other", "t")
        assert known == ops.PromptRow("s", PromptState.DONE, b"{}", None)
        assert await journal.run(ops.accept_prompt, "next", "s", b"{}", "t") is None
        assert await journal.run(ops.accept_prompt, "last", "s", b"[]", "t") is None
        await journal.run(ops.mark_running, "next")
        assert await journal.run(ops.interrupt_running_prompts, b"{}") == 1
        assert await journal.run(ops.interrupt_running_prompts, b"{}") == 0
        waiting = await journal.run(ops.accepted_prompts)
        assert waiting == [ops.AcceptedPrompt("last", "s", b"[]")]

    with_journal(tmp_path / "j.db", work)


def test_effects_finish_once_and_only_after_their_start(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        with pytest.raises(PunieError):
            await journal.run(ops.finish_effect, "e", "s", True, "")
        await journal.run(ops.start_effect, "e", "s", "prompt-s", 0, "write_file", b"{}")
        await journal.run(ops.finish_effect, "e", "s", True, "")
        with pytest.raises(PunieError):
            await journal.run(ops.finish_effect, "e", "s", True, "")

    with_journal(tmp_path / "j.db", work)


def test_the_effects_of_the_step_that_is_not_over_come_back(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s", "other")
        for ordinal, effect in ((0, "done"), (1, "open"), (1, "half")):
            prompt = ("s", "prompt-s", ordinal)
            await journal.run(ops.start_effect, effect, *prompt, "write_file", b"{}")
            if ordinal == 0:
                await journal.run(ops.store_delta, "s", 0, "prompt-s", b"delta")
        await journal.run(ops.finish_effect, "open", "s", False, "refused")
        state = await journal.run(ops.session_state, "s")
        assert state.deltas == [b"delta"]
        found = [(one.effect_id, one.ok, one.summary) for one in state.effects]
        assert found == [("open", False, "refused"), ("half", None, "")]
        assert (await journal.run(ops.session_state, "other")).effects == []
        assert await journal.run(ops.begun_prompt, "prompt-s") == ops.BegunPrompt(b"{}", 1)
        with pytest.raises(PunieError, match="no session nobody"):
            await journal.run(ops.session_state, "nobody")

    with_journal(tmp_path / "j.db", work)


def test_arguments_of_effects_come_back_as_far_as_they_fit(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        big = bytes(ops.MAX_STEP_ARGUMENTS // 2 + 1)
        for effect in ("a", "b"):
            await journal.run(ops.start_effect, effect, "s", "prompt-s", 0, "write_file", big)
        effects = (await journal.run(ops.session_state, "s")).effects
        assert [len(effect.arguments) for effect in effects] == [len(big), 0]

    with_journal(tmp_path / "j.db", work)


def test_mode_grants_and_trust_are_kept(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        assert await journal.run(ops.session_state, "s") == ops.SessionState()
        await journal.run(ops.set_mode, "s", Mode.TRUSTED)
        for allow in (True, False):
            await journal.run(ops.store_grant, "s", Grant(key="edit", allow=allow))
        for digest in ("one", "two"):
            await journal.run(projects.set_trust, "p", digest)

    async def again(journal: Journal) -> None:
        state = await journal.run(ops.session_state, "s")
        assert state.mode is Mode.TRUSTED
        assert state.grants == [Grant(key="edit", allow=False)]
        assert (await journal.run(ops.session, "s")).project.trusted == "two"
        await journal.run(projects.set_trust, "p", "")
        project = await journal.run(projects.ensure_project, "p", "/p", Isolation.PROCESS)
        assert project.trusted == ""
        with pytest.raises(PunieError, match="no session nobody"):
            await journal.run(ops.set_mode, "nobody", Mode.ASK)

    with_journal(tmp_path / "j.db", work)
    with_journal(tmp_path / "j.db", again)


def test_a_journal_of_version_1_keeps_what_it_has(tmp_path: Path):
    path = tmp_path / "j.db"
    db = sqlite3.connect(path)
    db.executescript(
        MIGRATIONS[0]
        + """
        PRAGMA user_version = 1;
        INSERT INTO projects VALUES ('p', '/p', 'process', 1.0);
        INSERT INTO sessions VALUES ('s', 'p', 'old title', 1.0, 2.0, 3);
        INSERT INTO prompts VALUES ('a', 's', 0, 'done', '{}', 'end_turn', '{}', 1.0, 2.0, NULL);
        INSERT INTO prompts VALUES ('b', 's', 1, 'accepted', '{}', NULL, NULL, 2.0, NULL, NULL);
        INSERT INTO deltas VALUES ('s', 0, 'a', 'delta');
        INSERT INTO effects VALUES ('e', 's', 'a', 'write_file', '{}', 1.0, NULL, NULL, NULL);
        INSERT INTO updates VALUES ('s', 1, 'a', '{}');
        """.replace("'{}'", "x'7b7d'").replace("'delta'", "x'64'")
    )
    db.close()

    async def work(journal: Journal) -> None:
        assert await journal.run(ops.session_state, "s") == ops.SessionState(deltas=[b"d"])
        assert await journal.run(ops.accepted_prompts) == [ops.AcceptedPrompt("b", "s", b"{}")]
        assert await journal.run(ops.append_update, "s", "b", b"{}") == 3
        await journal.run(ops.start_effect, "new", "s", "b", 1, "write_file", b"{}")
        effects = (await journal.run(ops.session_state, "s")).effects
        assert [effect.effect_id for effect in effects] == ["new"]

    with_journal(path, work)
    found = msgspec.json.decode(perf.report(path, "s", None, 10), type=PerfReport).turns
    assert [(turn.prompt_id, turn.title, turn.meta) for turn in found] == [("a", "old title", None)]


def test_a_daemons_start_does_not_read_every_prompt(tmp_path: Path):
    done = list[str]()

    def watched(db: sqlite3.Connection) -> None:
        db.set_trace_callback(done.append)
        ops.interrupt_running_prompts(db, b"{}")
        ops.accepted_prompts(db)
        db.set_trace_callback(None)
        for statement in [one for one in done if "prompts" in one]:
            plan = db.execute(f"EXPLAIN QUERY PLAN {statement}").fetchone()[3]
            assert plan == "SEARCH prompts USING INDEX prompts_open (state=?)"

    with_journal(tmp_path / "j.db", lambda journal: journal.run(watched))
    assert len(done) == 2


def test_a_full_disk_refuses_and_later_goes_on(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        pages = await journal.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await journal.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
        with pytest.raises(PunieError, match=r"j\.db cannot store this: database or disk is full"):
            await journal.run(ops.accept_prompt, "big", "s", b"x" * 100_000, "t")
        await journal.run(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone())
        assert await journal.run(ops.accept_prompt, "big", "s", b"x" * 100_000, "t") is None

    with_journal(tmp_path / "j.db", work)


def test_a_connection_that_breaks_fails_everything_and_can_be_closed(tmp_path: Path):
    async def work(journal: Journal) -> None:
        await fill(journal, "s")
        batch = [
            await journal.submit(ops.barrier),
            await journal.submit(lambda db: db.close()),
            await journal.submit(ops.barrier),
        ]
        for future in batch:
            with pytest.raises(PunieError, match="cannot store this"):
                await future
        with pytest.raises(PunieError, match="cannot store this"):
            await journal.run(ops.accept_prompt, "p", "s", b"{}", "t")

    with_journal(tmp_path / "j.db", work)


def test_a_journal_of_a_newer_punie_is_left_alone(tmp_path: Path):
    path = tmp_path / "j.db"
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    before = path.read_bytes()

    async def nothing(_: Journal) -> None:
        pytest.fail("it opened")

    with pytest.raises(PunieError, match="this Punie knows") as refused:
        with_journal(path, nothing)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_a_closed_journal_takes_nothing(tmp_path: Path):
    async def scenario() -> None:
        journal = await Journal.open(tmp_path / "j.db")
        last = await journal.submit(projects.ensure_project, "p", "/p", Isolation.PROCESS)
        await journal.close()
        assert (await last).id == "p"
        with pytest.raises(PunieError, match="closed"):
            await journal.run(ops.deltas, "s")

    asyncio.run(scenario())
