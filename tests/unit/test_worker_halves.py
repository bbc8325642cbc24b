"""The seam of the project half: deadlines, statistics, breadcrumbs, wherever it runs."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.errors import Internal, InvalidRequest, PunieError, TimedOut, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.limits import MAX_HALVES
from punie_protocol.testing.waiting import until
from punie_protocol.tools_files import ReadFile, ReadFileResult
from punie_workers import project_half
from punie_workers.crumbs import Crumbs
from punie_workers.file_tools import FileTools
from punie_workers.half import Half, HalfState
from punie_workers.halves import Abandoned, Halves
from punie_workers.in_place import InPlace
from punie_workers.index_budget import IndexBudget
from punie_workers.interp import serve
from punie_workers.project_half import ProjectHalf

READ = encode_request("read_file", {"path": "a.txt", "start_line": 1, "max_lines": 9})
MISSING = encode_request("read_file", {"path": "none", "start_line": 1, "max_lines": 9})
WRONG = encode_request("read_file", {"no": "such"})

PLACES: list[Callable[[str], Half]] = [ProjectHalf, InPlace]


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "a.txt").write_text("hello\n")
    return str(tmp_path)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Interpreters that hang in ``break_hang`` until this file exists, and leave in
    ``break_leave``."""
    release = tmp_path / "release"
    bootstrap = project_half._bootstrap() + (
        "import os, sys\n"
        "entry = punie_workers.interp.entry\n"
        "really = entry.handle\n"
        "def handle(request):\n"
        f"    while b'break_hang' in request and not os.path.exists({str(release)!r}): pass\n"
        "    if b'break_leave' in request: sys.exit('it leaves')\n"
        "    return really(request)\n"
        "entry.handle = handle\n"
    )
    monkeypatch.setattr(project_half, "_bootstrap", lambda: bootstrap)
    yield release
    release.touch()


HANG = encode_request("break_hang", {})
LEAVE = encode_request("break_leave", {})


def let_go(hanging: Path) -> None:
    hanging.touch()


def marks(crumb_file: Path) -> bytes:
    return crumb_file.read_bytes()


def descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))  # noqa: PTH208 (names are wanted)


async def close(halves: Halves) -> None:
    halves.stop()
    await asyncio.to_thread(halves.join, 10.0)


@pytest.mark.parametrize("make", PLACES)
def test_it_is_the_same_wherever_it_runs(root: str, make: Callable[[str], Half]) -> None:
    async def main() -> None:
        halves = Halves(root, Abandoned(lambda: None), make)
        with pytest.raises(PunieError, match="new"):
            await halves.call(READ, dict)
        await halves.start()
        found = await FileTools(halves).run(ReadFile("a.txt"))
        assert isinstance(found, ReadFileResult)
        assert found.text == "hello\n"
        with pytest.raises(PunieError) as missing:
            await halves.call(MISSING, dict)
        assert isinstance(missing.value.error, ToolFailed)
        with pytest.raises(PunieError, match="TypeError") as wrong:
            await halves.call(WRONG, dict)
        assert isinstance(wrong.value.error, Internal)
        status = halves.status("p1")
        assert (status.project_id, status.calls, status.failed) == ("p1", 4, 2)
        assert (status.waiting, status.replaced) == (0, 0)
        assert 0 < status.longest_ms <= status.busy_ms
        await close(halves)
        with pytest.raises(PunieError, match="stopped"):
            await halves.call(READ, dict)

    asyncio.run(main())


def test_in_place_nothing_is_shared_and_nothing_stays(root: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("other\n")

    async def main() -> None:
        before = descriptors()
        halves = [InPlace(root), InPlace(str(other))]
        for half in halves:
            await half.start()
        texts = [(await half.call(READ, dict))["text"] for half in halves]
        assert texts == ["hello\n", "other\n"]
        for half in halves:
            half.stop()
            half.stop()
        assert descriptors() == before

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, 1, 65_531, 65_536, 3_000_000])
def test_requests_and_replies_of_any_size(root: str, size: int) -> None:
    async def main() -> None:
        halves = Halves(root, Abandoned(lambda: None))
        await halves.start()
        names = b"".join(b"%07d\0" % n for n in range(size // 8)) + b"x" * (size % 8)
        request = {"output": names, "prefix": "", "pattern": "*", "limit": 10**6, "complete": True}
        found = await halves.call(encode_request("list_files", request), dict)
        assert len(found["files"]) == size // 8
        await close(halves)

    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300))), st.integers(1, 50))
def test_frames_are_whole_however_they_are_cut(frames: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(serve.frame(status, rest) for status, rest in frames)
    buffer, found = bytearray(), []
    for at in range(0, len(data), step):
        buffer += data[at : at + step]
        while (one := serve.take(buffer)) is not None:
            found.append(one)
    assert found == frames
    assert not buffer


def test_a_call_that_only_waited_too_long_quarantines_nothing(root: str, hanging: Path) -> None:
    told: list[str] = []

    async def main() -> None:
        abandoned = Abandoned(lambda: None)
        halves = Halves(root, abandoned, on_quarantined=lambda operation, s: told.append(operation))
        await halves.start()
        busy = asyncio.create_task(halves.call(HANG, dict, 60.0))
        await until(lambda: halves.status("p").waiting == 1)
        with pytest.raises(PunieError, match="other tools of this project took longer") as late:
            await halves.call(READ, dict, 0.01)
        assert isinstance(late.value.error, TimedOut)
        assert halves._half.state is HalfState.RUNNING
        let_go(hanging)
        with pytest.raises(PunieError, match="ValueError"):
            await busy
        assert (await halves.call(READ, dict))["text"] == "hello\n"
        assert halves.status("p").replaced == 0
        await close(halves)

    asyncio.run(main())
    assert told == []


def test_what_waits_behind_a_call_that_hangs_is_done_by_the_next_half(
    root: str, hanging: Path
) -> None:
    told: list[tuple[str, float]] = []

    async def main() -> None:
        halves = Halves(
            root, Abandoned(lambda: None), on_quarantined=lambda *what: told.append(what)
        )
        await halves.start()
        first = halves._half
        lost = asyncio.create_task(halves.call(HANG, dict, 0.1))
        await until(lambda: halves.status("p").waiting == 1)
        behind = [asyncio.create_task(halves.call(READ, dict)) for _ in range(5)]
        assert [(await one)["text"] for one in behind] == ["hello\n"] * 5
        with pytest.raises(PunieError) as late:
            await lost
        assert isinstance(late.value.error, TimedOut)
        assert halves.status("p").replaced == 1
        let_go(hanging)
        await close(halves)
        await asyncio.to_thread(first.join, 10.0)

    asyncio.run(main())
    assert [operation for operation, _ in told] == ["break_hang"]
    assert told[0][1] >= 0.05


def test_a_call_that_hangs_is_noticed_although_its_caller_is_gone(root: str, hanging: Path) -> None:
    told: list[str] = []

    async def main() -> None:
        halves = Halves(root, Abandoned(lambda: None), on_quarantined=lambda op, s: told.append(op))
        await halves.start()
        lost = asyncio.create_task(halves.call(HANG, dict, 0.1))
        await until(lambda: halves.status("p").waiting == 1)
        lost.cancel()
        await until(lambda: told == ["break_hang"])
        let_go(hanging)
        await close(halves)

    asyncio.run(main())


def test_an_interpreter_that_leaves_is_replaced_and_not_counted_as_hanging(
    root: str, hanging: Path
) -> None:
    left: list[int] = []

    async def main() -> None:
        halves = Halves(root, Abandoned(lambda: left.append(1)))
        await halves.start()
        for times in range(1, 6):
            with pytest.raises(PunieError, match="it leaves"):
                await halves.call(LEAVE, dict)
            assert (await halves.call(READ, dict))["text"] == "hello\n"
            assert halves.status("p").calls == 1 + 3 * times
            assert halves.status("p").waiting == 0
            assert halves.status("p").replaced == 0
        leaving = asyncio.create_task(halves.call(LEAVE, dict))
        behind = [asyncio.create_task(halves.call(READ, dict, 60.0)) for _ in range(5)]
        assert [(await one)["text"] for one in behind] == ["hello\n"] * 5
        with pytest.raises(PunieError, match="it leaves"):
            await leaving
        await close(halves)

    asyncio.run(main())
    assert left == []


def test_a_fresh_half_takes_over_while_the_old_one_ends_its_calls(root: str, hanging: Path) -> None:
    async def main() -> None:
        halves = Halves(root, Abandoned(lambda: None))
        await halves.start()
        old = halves._half
        busy = asyncio.create_task(halves.call(HANG, dict))
        behind = asyncio.create_task(halves.call(READ, dict))
        await until(lambda: halves.status("p").waiting == 2)
        await halves.renew()
        assert halves._half is not old
        assert (await halves.call(READ, dict))["text"] == "hello\n"
        assert not behind.done()
        let_go(hanging)
        assert (await behind)["text"] == "hello\n"
        with pytest.raises(PunieError, match="ValueError"):
            await busy
        await asyncio.to_thread(old.join, 10.0)
        await close(halves)
        await halves.renew()
        assert halves._half.state is HalfState.STOPPED

    asyncio.run(main())


def test_an_interpreter_that_cannot_be_made_says_why(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_half, "_bootstrap", lambda: "raise OSError('no room')")

    async def main() -> None:
        halves = Halves(root, Abandoned(lambda: None))
        with pytest.raises(PunieError, match="no room") as failed:
            await halves.start()
        assert isinstance(failed.value.error, Internal)
        await close(halves)

    asyncio.run(main())


# breadcrumbs


@pytest.fixture
def crumb_file(tmp_path: Path) -> Path:
    file = tmp_path / "crumbs"
    file.write_bytes(bytes(MAX_HALVES))
    return file


def test_a_crumb_is_set_while_a_call_is_inside(root: str, hanging: Path, crumb_file: Path) -> None:
    crumbs = Crumbs(str(crumb_file))

    async def main() -> None:
        make = partial(ProjectHalf, crumb=crumbs.crumb(7))
        halves = Halves(root, Abandoned(lambda: None), make)
        await halves.start()
        await until(lambda: crumb_file.read_bytes() == bytes(MAX_HALVES))
        first = halves._half
        with pytest.raises(PunieError):
            await halves.call(HANG, dict, 0.05)
        await halves.call(READ, dict)  # in its successor
        expected = bytearray(MAX_HALVES)
        expected[7] = 1
        assert marks(crumb_file) == expected
        let_go(hanging)
        await close(halves)
        await asyncio.to_thread(first.join, 10.0)
        await until(lambda: crumb_file.read_bytes() == bytes(MAX_HALVES))

    asyncio.run(main())


def test_a_crumb_outlives_any_death(crumb_file: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from punie_workers.crumbs import Crumbs\n"
        "crumbs = Crumbs(sys.argv[1])\n"
        "with crumbs.crumb(0).inside(): pass\n"
        "with crumbs.crumb(4095).inside(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(crumb_file)], check=False, timeout=15)
    assert done.returncode == -9
    assert crumb_file.read_bytes() == bytes(MAX_HALVES - 1) + b"\1"


def test_what_is_no_breadcrumb(crumb_file: Path, tmp_path: Path) -> None:
    for slot in (-1, MAX_HALVES):
        with pytest.raises(PunieError, match=f"no breadcrumb {slot}") as wrong:
            Crumbs(str(crumb_file)).crumb(slot)
        assert isinstance(wrong.value.error, InvalidRequest)
    Crumbs("").crumb(0).enter()
    link = tmp_path / "link"
    link.symlink_to(crumb_file)
    short = tmp_path / "short"
    short.write_bytes(b"\0")
    for path in (link, short, tmp_path / "none", tmp_path):
        with pytest.raises(PunieError, match="breadcrumb file"):
            Crumbs(str(path))


# the budget of the indexes


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40), st.integers(1, 100))
def test_the_least_recently_used_index_goes_first(uses: list[tuple[int, int]], total: int) -> None:
    budget = IndexBudget[int](total)
    order: list[int] = []
    sizes: dict[int, int] = {}
    for owner, size in uses:
        gone = budget.used(owner, size)
        order = [one for one in order if one != owner] + [owner]
        sizes[owner] = size
        expected: list[Any] = []
        while sum(sizes[one] for one in order) > total and len(order) > 1:
            expected.append(order.pop(0))
        assert gone == expected
        assert owner in order


def test_what_is_forgotten_takes_nothing() -> None:
    budget = IndexBudget[str](10)
    assert budget.used("a", 8) == []
    budget.forget("a")
    budget.forget("a")
    assert budget.used("b", 8) == []
    assert budget.used("c", 8) == ["b"]
