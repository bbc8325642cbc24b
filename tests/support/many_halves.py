"""A process in which many interpreters are created, used, broken and closed, eight at a time.

    python -m tests.support.many_halves cycle COUNT FOLDER
    python -m tests.support.many_halves open COUNT FOLDER

A process of its own, so that a crash of one is seen and its memory is that of interpreters alone.
``cycle`` prints a JSON line for each `BATCH`: what is left when all of them are closed. ``open``
opens all of them at once, uses each, and prints what they take. Ends as a program ends, through the
finalisation of Python, when nothing went wrong; else with an error.
"""

import asyncio
import gc
import json
import sys
import threading
from collections import Counter
from concurrent import interpreters
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest

from punie_protocol.errors import Internal, PunieError, TimedOut, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.tools_files import EditFile, ReadFile, ReadFileResult
from punie_workers import lifetime, project_half
from punie_workers.edit_tools import EditTools
from punie_workers.file_tools import FileTools
from punie_workers.halves import Abandoned, Halves
from tests.support.memory import private_bytes

AT_ONCE: Final = 8
BATCH: Final = 50
PATIENCE: Final = 30.0

SOURCE: Final = "".join(f"class C{n}:\n    def method(self): return {n}\n\n" for n in range(200))

BREAKS: Final = """
import atexit, os, sys, threading, time
from punie_workers.interp import entry, wire
handle = entry.handle

class Cycle:
    def __init__(self):
        self.me = self
        self.ballast = [bytearray(1000) for _ in range(500)]
    def __del__(self):
        raise RuntimeError('an error nobody hears')

def recursion(n=0):
    return recursion(n + 1) + [n]

def broken(request):
    operation, arguments = wire.decode_request(request)
    match operation:
        case 'break_memory':
            bytearray(1 << 60)
        case 'break_memory_filled':
            kept = []
            try:
                while len(kept) < 40:
                    kept.append(bytearray(1 << 20))
            finally:
                bytearray(1 << 60)
        case 'break_recursion':
            recursion()
        case 'break_exit':
            sys.exit('it leaves')
        case 'break_interrupt':
            raise KeyboardInterrupt
        case 'break_unknown':
            return handle(wire.encode_request('no_such_thing', {}))
        case 'break_arguments':
            return handle(wire.encode_request('read_file', {'no': 'such'}))
        case 'break_torn':
            return handle(wire.encode_request('read_file', arguments))[:-9]
        case 'break_end':
            return b'\\xe9\\x00\\x00\\x00\\x00'
        case 'break_modules':
            sys.modules.clear()
        case 'break_garbage':
            sys.garbage = [Cycle() for _ in range(20)]
            for _ in range(20): Cycle()
            sys.kept = open(__import__('json').__file__)
            atexit.register(recursion)
        case 'break_thread':
            threading.Thread(target=time.sleep, args=(0.05,)).start()
        case 'break_hang':
            while not os.path.exists(arguments['path']): pass
    return handle(request) if operation[:5] != 'break' else wire.encode_ok(None)

entry.handle = broken
"""
"""What an interpreter does on demand that the project half would never do."""

KINDS: Final = {
    "": None,
    "break_memory": Internal,
    "break_memory_filled": Internal,
    "break_recursion": Internal,
    "break_exit": Internal,
    "break_interrupt": Internal,
    "break_unknown": ToolFailed,
    "break_arguments": Internal,
    "break_torn": Internal,
    "break_end": Internal,
    "break_modules": None,
    "break_garbage": None,
    "break_thread": None,
}
"""By operation, the error that the host half is told; ``None`` for none."""

HANG: Final = "break_hang"
HANG_EVERY: Final = 50


class Lane:
    """One project, its files and what it is asked, again and again."""

    def __init__(self, root: Path, counts: Counter[str]) -> None:
        self.root = root
        self.counts = counts
        self.release = root / "release"
        (root / "pkg").mkdir(parents=True)
        (root / "pkg" / "a.py").write_text(SOURCE)

    async def run(self, number: int) -> None:
        """Create, use, break, use again where that can be, and close."""
        kinds = list(KINDS)
        kind = HANG if number % HANG_EVERY == HANG_EVERY - 1 else kinds[number % len(kinds)]
        self.release.unlink(missing_ok=True)
        halves = Halves(str(self.root), Abandoned(lambda: None), on_quarantined=self._hangs)
        try:
            await halves.start()
            first = halves._half
            await self.use(halves, number)
            await self.hang(halves) if kind == HANG else await self.abuse(halves, kind)
            if kind != "break_modules":
                await self.use(halves, number)
        finally:
            self.release.touch()
            halves.stop()
        for half in {first, halves._half}:
            await asyncio.to_thread(half.join, PATIENCE)
        self.counts[kind or "nothing"] += 1

    async def use(self, halves: Halves, number: int) -> None:
        """Read, edit, and ask for symbols, for real."""
        name = f"Number{number}"
        file = self.root / "pkg" / "b.py"
        file.write_text("one\n")
        edit = await EditTools(halves, lambda paths: None).prepare(
            EditFile("pkg/b.py", "one", f"class {name}: pass")
        )
        await edit.run()
        found = await FileTools(halves).run(ReadFile("pkg/b.py"))
        assert isinstance(found, ReadFileResult)
        assert found.text == f"class {name}: pass\n", found
        answer = await self.symbols(halves, name)
        assert answer["symbol_count"] == 1, answer

    async def symbols(self, halves: Halves, name: str) -> dict[str, Any]:
        """Index the two files and look a name up."""
        output = b"pkg/a.py\0pkg/b.py\0"
        listing: dict[str, Any] = {"slot": "project", "listing": 1}
        whole = {"prefix": "", "complete": True}
        for operation, arguments in (
            ("symbols_take", {"output": output} | whole),
            ("symbols_refresh", {"prefix": "", "start": 0}),
        ):
            await halves.call(encode_request(operation, listing | arguments), dict)
        room = {"prefix": "", "start": 0, "name": name, "definitions": 9, "references": 9}
        return await halves.call(encode_request("symbols_query", listing | room), dict)

    async def abuse(self, halves: Halves, kind: str) -> None:
        """Break it; it is said what happened."""
        if not kind:
            return
        expected = KINDS[kind]
        request = encode_request(kind, {"path": "pkg/b.py", "start_line": 1, "max_lines": 9})
        try:
            await halves.call(request, object, PATIENCE)
        except PunieError as error:
            if expected is None or not isinstance(error.error, expected):
                raise
        else:
            assert expected is None, f"{kind} went unnoticed"

    async def hang(self, halves: Halves) -> None:
        """Give a call up, and see that it is replaced."""
        before = self.counts["quarantined"]
        with pytest.raises(PunieError) as late:
            await halves.call(encode_request(HANG, {"path": str(self.release)}), object, 0.2)
        assert isinstance(late.value.error, TimedOut)
        await self.use(halves, 0)
        assert self.counts["quarantined"] == before + 1
        assert halves.status("p").replaced == 1, halves.status("p")

    def _hangs(self, operation: str, seconds: float) -> None:
        assert operation == HANG, operation
        assert seconds > 0
        self.counts["quarantined"] += 1


async def batch(lanes: list[Lane], first: int, last: int) -> None:
    """Do numbers `first` to `last`, spread over the lanes."""
    numbers = iter(range(first, last))

    async def work(lane: Lane) -> None:
        for number in numbers:
            await lane.run(number)

    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(work(lane))


async def cycle(count: int, folder: Path) -> None:
    """Do `count` interpreters in batches."""
    counts = Counter[str]()
    lanes = [Lane(folder / f"project{n}", counts) for n in range(AT_ONCE)]
    for first in range(0, count, BATCH):
        last = min(count, first + BATCH)
        await batch(lanes, first, last)
        gc.collect()
        report(done=last, counts=counts, **left())


async def hold(count: int, folder: Path) -> None:
    """Have `count` open at once."""
    lanes = [Lane(folder / f"project{n}", Counter()) for n in range(count)]
    all_of_them = [Halves(str(lane.root), Abandoned(lambda: None)) for lane in lanes]
    before = left()["private"]
    for halves in all_of_them:
        await halves.start()
        await FileTools(halves).run(ReadFile("pkg/a.py"))
    now = left()
    for halves in all_of_them:
        halves.stop()
    for halves in all_of_them:
        await asyncio.to_thread(halves.join, PATIENCE)
    each = (now["private"] - before) // count
    report(each=each, interpreters=now["interpreters"], left=left()["interpreters"])


def report(**values: object) -> None:
    """Print a line of JSON."""
    print(json.dumps(values), flush=True)


def left() -> dict[str, int]:
    """Return what this process has now; of interpreters, those besides its own."""
    return {
        "private": private_bytes(),
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/dev/fd").iterdir())),
        "interpreters": len(interpreters.list_all()) - 1,
    }


def main(what: str, count: str, folder: str) -> None:
    """Do what the command line says."""
    lifetime.keep_little()
    bootstrap = project_half._bootstrap() + BREAKS
    with patch.object(project_half, "_bootstrap", lambda: bootstrap):
        asyncio.run((cycle if what == "cycle" else hold)(int(count), Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
