"""What a worker process does to itself at its start: limits, orphans, immortal objects."""

import json
import subprocess
import sys
from typing import Any

import pytest


def said(code: str) -> Any:
    """Return the JSON that a program printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=15
    )
    return json.loads(done.stdout)


def test_the_kernel_keeps_it_to_its_limits():
    found = said("""
import json, resource
from punie_protocol.isolation import WorkerLimits
from punie_workers import lifetime
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 2000))
lifetime.limit(WorkerLimits(memory_mb=512, files=4096))
left = [resource.getrlimit(x) for x in (
    resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]
try:
    bytearray(800 * 1024 * 1024)
    refused = False
except MemoryError:
    refused = True
print(json.dumps([*left, refused]))
""")
    assert found == [[768 * 1024**2] * 2, [2000, 2000], [0, 0], sys.platform == "linux"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans go to init")
def test_orphans_are_kept_and_reaped_and_own_children_are_not():
    found = said("""
import json, os, subprocess, sys, time
from pathlib import Path
from punie_workers import children, lifetime

lifetime.keep_orphans()
detach = "import os; os.setsid(); print(os.fork() or 0); os._exit(0)"
own = subprocess.Popen(["true"])
grouped = subprocess.Popen(["true"], process_group=0)
subprocess.run([sys.executable, "-c", detach], stdout=subprocess.DEVNULL)
for pid in own.pid, grouped.pid:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
deadline = time.monotonic() + 10
while len(children._children()) > 2 and time.monotonic() < deadline:
    children.reap_orphans()
left = sorted(children._children()) == sorted([own.pid, grouped.pid])
print(json.dumps([left, own.wait(), grouped.wait()]))
""")
    assert found == [True, 0, 0]


def test_immortal_objects_work_as_before():
    found = said("""
import gc, json, sys
import msgspec
from punie_workers import immortal

class Point(msgspec.Struct):
    x: int
    name: str

def twice(value, *, by=(2, ("twice", 2.5))):
    return [by[0] * value, by[1][0]]

before = [1, 2]
box = {"k": before}
assert immortal.possible()
immortal.make_all()
immortal.fill_pools()
assert all(map(sys._is_immortal, (twice, twice.__code__.co_consts, before, box, Point)))
before.append(3)
box["new"] = object()
mortal = [object()]
gc.collect()
again = msgspec.json.decode(b'{"x": 1, "name": "n"}', type=Point)
print(json.dumps([before, twice(4), sorted(box), again.x, sys._is_immortal(mortal)]))
""")
    assert found == [[1, 2, 3], [8, "twice"], ["k", "new"], 1, False]
