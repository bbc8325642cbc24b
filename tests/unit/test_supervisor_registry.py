"""Projects and sessions in use."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from punie_protocol.errors import PunieError
from punie_protocol.messages.common import Isolation
from punie_supervisor import journal_ops as ops
from punie_supervisor import journal_projects as projects
from punie_supervisor.journal import Journal
from punie_supervisor.registry import Registry


def test_a_prompt_that_comes_while_its_project_moves_is_placed_where_it_moves_to(tmp_path: Path):
    async def scenario() -> None:
        journal = await Journal.open(tmp_path / "j.db")
        registry = Registry(journal, Isolation.PROCESS)
        project = await registry.project(str(tmp_path))
        await journal.run(ops.create_session, "s", project.id)
        session = await registry.session("s")
        moving = asyncio.create_task(registry.set_isolation(project, Isolation.INTERPRETER))
        await asyncio.sleep(0)
        with session.counted():
            assert project.level is Isolation.INTERPRETER
            await moving
            assert project.level is Isolation.INTERPRETER
        await journal.close()

    asyncio.run(scenario())


def test_a_move_that_cannot_be_stored_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario() -> None:
        journal = await Journal.open(tmp_path / "j.db")
        registry = Registry(journal, Isolation.PROCESS)
        project = await registry.project(str(tmp_path))
        monkeypatch.setattr(projects, "set_isolation", full)
        with pytest.raises(PunieError, match="disk is full"):
            await registry.set_isolation(project, Isolation.INTERPRETER)
        assert project.isolation is Isolation.PROCESS
        await journal.close()

    asyncio.run(scenario())
