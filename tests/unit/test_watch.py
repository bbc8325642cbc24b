"""Limits of a worker: what counts, what is said, what a look costs."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec
import pytest

from punie_protocol.client import WorkerUsage
from punie_protocol.isolation import WorkerLimits
from punie_supervisor import usage
from punie_supervisor.usage import NOTHING, Sample
from punie_supervisor.watch import EVERY, Meter, Watch, over
from tests.support.supervisor_rig import eventually

LIMITS = WorkerLimits(memory_mb=256, cpu_s=10, processes=16, files=256)
MB = 1024 * 1024


AT_THE_LIMIT = WorkerUsage(memory_bytes=256 * MB, cpu_s=10.0, processes=16, files=256)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, ""),
        ({"memory_bytes": 300 * MB}, "it used 300 MB of memory, over limits.memory_mb = 256"),
        ({"cpu_s": 12.0}, "it used 12 s of CPU time, over limits.cpu_s = 10"),
        ({"processes": 17}, "it used 17 processes, over limits.processes = 16"),
        ({"files": 257}, "it used 257 open files in one process, over limits.files = 256"),
    ],
)
def test_each_limit_is_named_with_what_was_used(values: dict[str, float], reason: str):
    assert over(msgspec.structs.replace(AT_THE_LIMIT, **values), LIMITS) == reason


def test_cpu_time_counts_by_turn():
    meter = Meter(1, LIMITS)
    assert meter.take(Sample(cpu_s=8)) == ""
    meter.turn_began()
    meter.turn_began()  # of another session: the same count goes on
    assert meter.take(Sample(cpu_s=17)) == ""
    meter.turn_ended()
    assert meter.take(Sample(cpu_s=18.5)) == "it used 10 s of CPU time, over limits.cpu_s = 10"
    meter.turn_ended()
    assert meter.take(Sample(cpu_s=20)) == ""
    assert meter.used is not None
    assert meter.used.cpu_s == 1.5


def test_cpu_time_does_not_run_back():
    meter = Meter(1, LIMITS)
    meter.take(Sample(cpu_s=8))
    meter.turn_began()
    meter.take(Sample(cpu_s=5))  # a child ended that nobody waited for
    assert meter.used is not None
    assert meter.used.cpu_s == 0


def test_a_shared_worker_is_only_looked_at():
    meter = Meter(1, None)
    assert meter.take(Sample(memory_bytes=10**12, processes=10**6)) == ""
    assert meter.used is not None
    assert meter.used.memory_bytes == 10**12


def test_who_is_over_is_killed_and_the_others_are_not():
    killed: list[tuple[str, str]] = []
    samples = {1: Sample(processes=99), 2: Sample(processes=9)}

    async def scenario() -> None:
        watch = Watch(lambda *args: killed.append(args), sampler=samples.__getitem__)
        watch.began("w1", 1, LIMITS)
        watch.began("w2", 2, LIMITS)
        await watch.look()
        assert killed == [("w1", "it used 99 processes, over limits.processes = 16")]
        found = watch.usage("w2")
        assert found is not None
        assert found.processes == 9
        watch.ended("w1")
        assert watch.usage("w1") is None

    asyncio.run(scenario())


def test_a_worker_replaced_during_the_look_is_not_blamed():
    killed: list[str] = []

    async def scenario() -> None:
        watch: Watch

        def replaced(pid: int) -> Sample:
            loop.call_soon_threadsafe(watch.began, "w1", 2, LIMITS)
            loop.call_soon_threadsafe(done.set)
            assert done.wait(5)
            return Sample(processes=99)

        loop, done = asyncio.get_running_loop(), threading.Event()
        watch = Watch(lambda id, reason: killed.append(reason), sampler=replaced)
        watch.began("w1", 1, LIMITS)
        await watch.look()

    asyncio.run(scenario())
    assert killed == []


def test_it_looks_by_itself_and_goes_on_after_a_failure():
    killed: list[str] = []
    looks: list[int] = []

    def sampler(pid: int) -> Sample:
        looks.append(pid)
        if len(looks) == 1:
            raise RuntimeError("no /proc today")
        return Sample(files=1000)

    async def scenario() -> None:
        watch = Watch(lambda id, reason: killed.append(id), sampler=sampler, every_s=0.001)
        watch.start()
        assert not looks
        watch.began("w1", 1, LIMITS)
        await eventually(lambda: killed)
        await watch.close()

    asyncio.run(scenario())


def running(code: str, ready: Callable[[subprocess.Popen[str]], None]) -> Sample:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        ready(child)
        try:
            return usage.sample(child.pid)
        finally:
            child.kill()


def test_memory_and_descriptors_of_a_whole_tree_are_counted():
    grandchild = "held = b'x' * 50_000_000; files = [open('/dev/null') for _ in range(40)]"
    code = f"""
import subprocess, sys
wait = "\\nprint('up', flush=True); input()"
subprocess.run([sys.executable, "-c", {grandchild!r} + wait])
"""

    def ready(child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"

    found = running(code, ready)
    assert found.processes == 2
    assert found.memory_bytes > 50_000_000
    assert found.files >= 43


def test_cpu_time_of_ended_children_is_counted():
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    code = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {burn!r}])
print("up", flush=True)
input()
"""

    def ready(child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"

    assert running(code, ready).cpu_s >= 0.4


def test_a_process_that_is_gone_uses_nothing():
    child = subprocess.Popen(["true"])
    child.wait()
    assert usage.sample(child.pid) == NOTHING


def test_the_other_way_to_look_says_about_the_same():
    ours = usage.sample(os.getpid())
    theirs = sum((usage._psutil(pid) for pid in usage._psutil_tree(os.getpid())), NOTHING)
    assert theirs.processes == ours.processes
    assert 0.5 < theirs.memory_bytes / ours.memory_bytes < 2


def test_it_looks_at_once_when_a_turn_begins_after_a_while():
    looks: list[int] = []

    async def scenario() -> None:
        watch = Watch(lambda id, reason: None, sampler=lambda pid: looks.append(pid) or NOTHING)
        watch.start()
        watch.began("w1", 1, LIMITS)
        watch.turn_began("w1")
        watch.turn_ended("w1")
        assert not looks
        watch.turn_began("w1")
        await eventually(lambda: looks, within=1.9 + EVERY)
        await watch.close()

    asyncio.run(scenario())
