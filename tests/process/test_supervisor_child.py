"""One child and its keeper, with small programs that misbehave."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from punie_protocol.errors import PunieError
from punie_protocol.handshake import version
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages import to_worker
from punie_protocol.messages.common import Limits
from punie_protocol.messages.to_supervisor import Pong
from punie_protocol.permissions import PermissionSettings
from punie_supervisor.child import Child, Exit
from punie_supervisor.child_spec import ChildSpec, Restart
from punie_supervisor.keeper import SILENCE, Dialect, Keeper, KeeperState
from punie_supervisor.process import MAX_LINE, MAX_LINES
from tests.support.supervisor_rig import alive, eventually

DIALECT = Dialect(
    welcome=lambda _: to_worker.Welcome(
        protocol=PROTOCOL,
        version=version(),
        limits=Limits(),
        model_socket="",
        permissions=PermissionSettings(),
    ),
    ping=lambda nonce: to_worker.Ping(nonce=nonce),
    stop=lambda reason, seconds: to_worker.Stop(reason=reason, deadline_s=seconds),
)
HELLO = """
import asyncio, socket, sys, os, signal, subprocess, time
from punie_protocol.codec import encode_frame
from punie_protocol.messages.to_supervisor import Ready
from punie_protocol.handshake import hello
from punie_protocol.limits import PROTOCOL
from punie_protocol.messages.common import Role
import msgspec
control = socket.socket(fileno=int(sys.argv[1]))
def greet(protocol=PROTOCOL):
    greeting = msgspec.structs.replace(hello(Role.WORKER), protocol=protocol)
    control.sendall(encode_frame(greeting) + encode_frame(Ready()))
"""


class Recorder:
    """An inmate that writes down what it is told."""

    def __init__(self) -> None:
        self.exits: list[Exit] = []
        self.readies = 0
        self.stall: asyncio.Event | None = None
        self.stalled = asyncio.Event()

    def pong(self, child: Child, pong: Pong) -> None:
        pass

    def ready(self, child: Child) -> None:
        self.readies += 1

    async def message(self, child: Child, message: Any) -> None:
        if self.stall is None:
            raise AssertionError(message)
        self.stalled.set()
        await self.stall.wait()

    async def down(self, child: Child, exit: Exit) -> None:
        self.exits.append(exit)


def keeper_of(code: str, **options: Any) -> tuple[Keeper, Recorder]:
    recorder = Recorder()
    dialect = options.pop("dialect", DIALECT)
    clock = options.pop("clock", time.monotonic)
    spec = ChildSpec(
        id="child",
        command=(sys.executable, "-c", HELLO + code, "{fd}"),
        environment={},
        restart=options.pop("restart", Restart.TEMPORARY),
        **options,
    )
    return Keeper(spec, dialect, recorder, clock=clock), recorder


def test_stop_is_bounded_and_takes_the_whole_group(tmp_path: Path):
    note = tmp_path / "pid"
    code = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen(["sleep", "100"])
open({str(note)!r}, "w").write(str(grandchild.pid))
greet()
time.sleep(100)
"""

    async def scenario() -> None:
        keeper, recorder = keeper_of(code, shutdown_s=1.0)
        child = await keeper.ready()
        grandchild = int(note.read_text())
        assert alive(grandchild)
        await keeper.stop("enough")
        assert not alive(child.pid)
        await eventually(lambda: not alive(grandchild), within=1)
        assert keeper.state is KeeperState.IDLE
        assert [(e.reason, e.asked) for e in recorder.exits] == [("enough", True)]

    asyncio.run(scenario())


def test_a_child_that_never_gets_ready_is_killed():
    async def scenario() -> None:
        keeper, recorder = keeper_of("time.sleep(100)", start_s=0.3)
        keeper.ask()
        await eventually(lambda: recorder.exits)
        assert recorder.exits[0].reason == "not ready within 0.3 s"
        assert recorder.readies == 0

    asyncio.run(scenario())


def test_a_child_of_another_protocol_is_given_up_at_once():
    async def scenario() -> None:
        keeper, recorder = keeper_of("greet(99); time.sleep(100)", restart=Restart.PERMANENT)
        for _ in range(2):
            async with asyncio.timeout(10):
                with pytest.raises(PunieError, match=r"protocol 99.*punie restart"):
                    await keeper.ready()
        assert keeper.state is KeeperState.FAILED
        assert len(recorder.exits) == 1

    asyncio.run(scenario())


def test_a_program_that_is_not_there_is_given_up():
    async def scenario() -> None:
        spec = ChildSpec(
            id="child",
            command=("/no/such/program",),
            environment={},
            restart=Restart.PERMANENT,
            intensity=1,
        )
        keeper = Keeper(spec, DIALECT, Recorder())
        keeper.ask()
        await eventually(lambda: keeper.state is KeeperState.FAILED)
        assert "/no/such/program" in keeper.failure

    asyncio.run(scenario())


def test_a_child_that_closes_its_link_and_lives_on_is_killed():
    async def scenario() -> None:
        keeper, recorder = keeper_of("greet(); control.close(); time.sleep(100)")
        keeper.ask()
        await eventually(lambda: recorder.exits)
        assert recorder.exits[0].reason == "it closed its control link"

    asyncio.run(scenario())


def test_death_is_noticed():
    async def scenario() -> None:
        keeper, recorder = keeper_of("greet(); time.sleep(100)")
        await keeper.ready()
        keeper.kill("the test says so")
        await eventually(lambda: recorder.exits)

    asyncio.run(scenario())


def test_output_reaches_the_log_and_is_bounded():
    code = f"""
print("x" * 100_000)
for number in range({3 * MAX_LINES}):
    print("line", number)
sys.stdout.flush()
"""

    async def scenario() -> None:
        keeper, recorder = keeper_of(code)
        keeper.ask()
        await eventually(lambda: recorder.exits)

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    said = [line["line"] for line in lines if line["event"] == "child.output"]
    assert said[0] == "x" * MAX_LINE
    assert said[1] == "line 0"
    assert MAX_LINES <= len(said) <= 2 * MAX_LINES + 1


@pytest.mark.parametrize("restart", [Restart.PERMANENT, Restart.TRANSIENT])
def test_a_failed_child_comes_back(restart: Restart):
    async def scenario() -> None:
        keeper, recorder = keeper_of("greet(); time.sleep(100)", restart=restart)
        first = await keeper.ready()
        first.kill("once")
        await eventually(lambda: recorder.readies == 2)
        second = await keeper.ready()
        assert second.pid != first.pid
        assert keeper.restarts == 1
        await keeper.close("over")
        assert not alive(second.pid)

    asyncio.run(scenario())


def test_a_child_that_is_to_end_now_does_not_come_back():
    async def scenario() -> None:
        keeper, recorder = keeper_of("greet(); time.sleep(100)", restart=Restart.PERMANENT)
        child = await keeper.ready()
        keeper.end_now("there is no time")
        await eventually(lambda: keeper.state is KeeperState.IDLE)
        assert not alive(child.pid)
        assert [exit.reason for exit in recorder.exits] == ["there is no time"]
        keeper.ask()
        assert keeper.state is KeeperState.IDLE

    asyncio.run(scenario())


def test_a_child_stopped_between_two_lives_ends_idle(monkeypatch: pytest.MonkeyPatch):
    spawn, spawning, go_on = Child.spawn, asyncio.Event(), asyncio.Event()
    lives: list[Child] = []

    async def slow_spawn(*args: Any) -> Child:
        if lives:
            spawning.set()
            await go_on.wait()
        lives.append(await spawn(*args))
        return lives[-1]

    async def scenario() -> None:
        monkeypatch.setattr(Child, "spawn", slow_spawn)
        keeper, recorder = keeper_of("greet(); time.sleep(100)", restart=Restart.PERMANENT)
        (await keeper.ready()).kill("once")
        await spawning.wait()
        stopping = asyncio.create_task(keeper.stop("enough"))
        await eventually(lambda: keeper.state is KeeperState.STOPPING)
        go_on.set()
        await stopping
        assert keeper.state is KeeperState.IDLE
        assert recorder.readies == 1
        assert len(lives) == 2
        assert not [child for child in lives if alive(child.pid)]

    asyncio.run(scenario())


def test_a_child_whose_words_wait_for_us_does_not_count_as_silent(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("punie_supervisor.keeper.PING_EVERY", 0.01)
    code = """
from punie_protocol.messages.to_supervisor import ProjectReady
greet()
control.sendall(encode_frame(ProjectReady(project_id="p", activate_ms=1)))
time.sleep(100)
"""
    now, nonces = [0.0], list[int]()

    def ping(nonce: int) -> to_worker.Ping:
        nonces.append(nonce)
        return to_worker.Ping(nonce=nonce)

    async def scenario() -> None:
        keeper, recorder = keeper_of(
            code, dialect=msgspec.structs.replace(DIALECT, ping=ping), clock=lambda: now[0]
        )
        recorder.stall = asyncio.Event()
        child = await keeper.ready()
        await recorder.stalled.wait()
        now[0] = 10 * SILENCE
        before = len(nonces)
        await eventually(lambda: len(nonces) > before + 2)
        assert alive(child.pid)
        recorder.stall.set()
        before = len(nonces)
        await eventually(lambda: len(nonces) > before + 2)
        assert keeper.state is KeeperState.READY
        now[0] = 20 * SILENCE
        await eventually(lambda: recorder.exits)
        assert "no answer for" in recorder.exits[0].reason

    asyncio.run(scenario())
