"""A model that attacks, through a real worker with every tool: nothing gets out, and the worker
goes on."""

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.support.checking import until
from tests.support.escape_ground import Case, Ground, cases
from tests.support.hostile_model import attack, texts

REFUSED = "refused"


@pytest.mark.parametrize("case", cases("model.toml"), ids=lambda case: case.id)
def test_nothing_gets_out(
    case: Case, tmp_path: Path, punie_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = Ground(tmp_path)
    ground.more = {"MODEL": str(punie_home / "host.sock"), "FOLDER": str(tmp_path)}
    monkeypatch.setenv("HOME", str(ground.home))
    with ground.listening():
        ground.prepare(case)
        told = asyncio.run(attack(punie_home, ground, case))
    calls = case.calls if case.expect != REFUSED else []
    assert bool(told.refused) == (case.expect == REFUSED), told.refused
    for call, answer in zip(calls, told.answers, strict=True):
        assert not ground.shows(answer, case), (call, answer[:500])
        assert case.expect != "error" or answer.startswith("error: "), (call, answer[:500])
    asked = [text for call in case.calls for text in texts(ground.filled(call.arguments))]
    shown = [text for text in told.seen if not any(one in text for one in asked)]
    assert [text for text in shown if ground.shows(text, case)] == []
    assert ground.damage() == []
    assert [name for name in case.absent if (ground.project / name).exists()] == []
    until(lambda: not _left(ground))


def _left(ground: Ground) -> list[int]:
    """Return the processes that still are at work in the project."""
    places = {process.pid: process.info["cwd"] or "" for process in psutil.process_iter(["cwd"])}
    return [pid for pid, place in places.items() if place.startswith(str(ground.project))]
