"""Rank 0's script and those that play it after, over real sockets; no model."""

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator

import pytest

from punie_model_host import player
from punie_model_host import script as script_module
from punie_model_host.engine_messages import Cancel, Died, Emission, Key, Submit, ToClient
from punie_model_host.lines import (
    LENGTH,
    Chore,
    End,
    Hello,
    Name,
    Read,
    Reading,
    Said,
    SubmitLine,
    Take,
    Work,
    command_of,
    frame,
    line_of,
)
from punie_model_host.prepare import Prepared
from punie_model_host.profile import SamplingProfile
from punie_model_host.ranks import Place
from punie_model_host.sampling_plan import SamplingPlan
from punie_model_host.script import Follower, Leader, gather
from punie_model_host.world import RanksFault
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import TextDelta
from punie_protocol.messages.to_model_host import Generate, Sampling

DEADLINE = 10.0
HELLO = ToClient(Key(1, 1), TextDelta(request_id=1, text="hello"))


class Pair:
    """A leader and a follower, and the sockets between them."""

    def __init__(self) -> None:
        self.ours, self.theirs = _connected()
        self.out: queue.SimpleQueue[Emission] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.leader = Leader({1: self.ours}, self.out.put)
        self.follower = Follower(self.theirs, self.lost.put)

    def stop(self) -> None:
        """End both, and the threads that listen."""
        for end in (self.ours, self.theirs):
            with contextlib.suppress(OSError):  # the other end is closed
                end.shutdown(socket.SHUT_RDWR)
        for thread in threading.enumerate():
            if thread.name in ("rank-0", "rank-1"):
                thread.join(DEADLINE)

    def close(self) -> None:
        """End both and their connection."""
        self.stop()
        for end in (self.ours, self.theirs):
            end.close()


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(Leader, "_watch", lambda _leader: None)  # it sleeps until the process ends
    pair = Pair()
    yield pair
    pair.close()


def test_what_the_leader_makes_is_what_the_follower_gets(pair: Pair):
    pair.leader.say(Work(loads=False))
    assert pair.leader.ask(Reading, lambda: Reading(4.5)) == Reading(4.5)
    assert pair.leader.ask(Name, lambda: Name("call_1")) == Name("call_1")
    pair.leader.say(Chore())
    assert pair.follower.hear() == Work(loads=False)
    assert pair.follower.ask(Reading, lambda: Reading(9.0)) == Reading(4.5)
    assert pair.follower.ask(Name, lambda: Name("call_9")) == Name("call_1")
    assert pair.follower.hear() == Chore()


def test_commands_arrive_as_they_were(pair: Pair):
    line = line_of(Cancel(Key(3, 4)))
    assert line is not None
    pair.leader.say(Take(line))
    heard = pair.follower.hear()
    assert isinstance(heard, Take)
    assert command_of(heard.command) == Cancel(Key(3, 4))


def test_a_request_with_numbers_of_more_than_64_bits_arrives(pair: Pair):
    sampling = Sampling(seed=2**70 + 5, top_k=2**70, max_tokens=2**70, logit_bias={-(2**70): 1.0})
    request = Generate(
        request_id=1,
        client_id="c",
        conversation_id="v",
        priority=Priority.INTERACTIVE,
        messages=[],
        sampling=sampling,
        prompt=[1, 2**70],
    )
    line = line_of(Submit(Key(1, 1), request, 0.0, None))
    assert line is not None
    pair.leader.say(Take(line))
    heard = pair.follower.hear()
    assert isinstance(heard, Take)
    command = command_of(heard.command)
    assert isinstance(command, Submit)
    most = 2**63 - 1
    assert command.request.prompt == [1, most]
    assert command.request.sampling == Sampling(
        seed=5, top_k=most, max_tokens=most, logit_bias={-most: 1.0}
    )


def test_a_request_that_ranks_cannot_be_told_is_refused_alone():
    schemas = {"tool": {"n": {"maximum": 2**70}}}
    plan = SamplingPlan(SamplingProfile(), seed=1)
    prepared = Prepared("model", [1], 0, False, 1, plan, schemas)
    request = Generate(
        request_id=1,
        client_id="c",
        conversation_id="v",
        priority=Priority.INTERACTIVE,
        messages=[],
    )
    line = line_of(Submit(Key(1, 1), request, 0.0, prepared))
    assert line is not None
    with pytest.raises(ValueError, match="cannot be told"):
        frame(Take(line))
    sent = player._sendable_command(line)
    assert isinstance(sent, SubmitLine)
    assert sent.prepared is None
    read = player._sendable(Read(prepared))
    assert isinstance(read.error, InvalidRequest)
    assert frame(read)


def test_a_follower_that_asks_for_something_else_stops(pair: Pair):
    pair.leader.ask(Reading, lambda: Reading(1.0))
    with pytest.raises(RanksFault, match="a Name is asked for"):
        pair.follower.ask(Name, lambda: Name("x"))
    pair.leader.ask(Reading, lambda: Reading(2.0))
    with pytest.raises(RanksFault, match="nothing is asked"):
        pair.follower.hear()


def test_clients_are_told_what_both_said(pair: Pair):
    for one in (pair.leader, pair.follower):
        one.out(HELLO)
    pair.leader.close_turn()
    with pytest.raises(queue.Empty):
        pair.out.get_nowait()
    pair.follower.close_turn()
    assert pair.out.get(timeout=DEADLINE) == HELLO


def test_a_follower_that_says_something_else_ends_the_leader(pair: Pair):
    pair.leader.out(HELLO)
    pair.leader.close_turn()
    pair.follower.close_turn()
    died = pair.out.get(timeout=DEADLINE)
    assert isinstance(died, Died)
    assert "rank 1 answered otherwise" in died.reason


def test_a_follower_that_goes_ends_the_leader(pair: Pair):
    pair.theirs.shutdown(socket.SHUT_RDWR)
    died = pair.out.get(timeout=DEADLINE)
    assert isinstance(died, Died)
    assert "rank 1 is lost" in died.reason
    pair.ours.shutdown(socket.SHUT_WR)  # as the other machine's answer to a line would have it
    with pytest.raises(RanksFault, match="rank 1 is lost"):
        pair.leader.say(Chore())


def test_a_leader_that_goes_is_lost_unless_it_said_so(pair: Pair):
    pair.ours.shutdown(socket.SHUT_RDWR)
    assert pair.lost.get(timeout=DEADLINE)


def test_after_the_end_nobody_is_lost(pair: Pair):
    pair.leader.say(End(0.0))
    assert pair.follower.hear() == End(0.0)
    pair.stop()
    assert pair.out.empty()
    assert pair.lost.empty()


@pytest.mark.parametrize("rubbish", [LENGTH.pack(2**31), frame(Said(0, b""))[:-1], b"\0\0\0\1x"])
def test_rubbish_ends_it(pair: Pair, rubbish: bytes):
    pair.theirs.sendall(rubbish)
    pair.theirs.shutdown(socket.SHUT_WR)
    died = pair.out.get(timeout=DEADLINE)
    assert isinstance(died, Died)


# coming together


class Exchange:
    """Stands for MLX's group of `size` ranks: what rank 0 tells all, once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.told: queue.Queue[bytes] = queue.Queue()

    def from_leader(self, data: bytes, size: int) -> bytes:
        if data:
            for _ in range(self.size):
                self.told.put(data)
        told = self.told.get(timeout=DEADLINE)
        assert len(told) == size
        return told


def gathered(world: Exchange, rank: int, links: dict[int, dict[int, socket.socket]]) -> None:
    links[rank] = gather(Place(rank, "127.0.0.1"), world)  # ty: ignore[invalid-argument-type]  stands for it


def test_all_ranks_come_together_and_strangers_do_not():
    world, links = Exchange(4), dict[int, dict[int, socket.socket]]()
    leader = threading.Thread(target=gathered, args=(world, 0, links))
    leader.start()
    told = world.told.get(timeout=DEADLINE)
    address = "127.0.0.1", int.from_bytes(told[:2])
    for stranger in (
        b"GET / HTTP/1.1\r\n\r\n",
        frame(Hello(1, b"x" * 32)),
        frame(Hello(7, told[2:])),
    ):
        with socket.create_connection(address) as link:
            link.sendall(stranger)
            link.settimeout(DEADLINE)
            assert not refused(link)
    others = [threading.Thread(target=gathered, args=(world, n, links)) for n in (1, 2, 3)]
    world.told.put(told)
    for thread in others:
        thread.start()
    for thread in (leader, *others):
        thread.join(DEADLINE)
    assert sorted(links[0]) == [1, 2, 3]
    for rank in (1, 2, 3):
        links[0][rank].sendall(bytes([rank]))
        assert links[rank][0].recv(1) == bytes([rank])
    for of_rank in links.values():
        for link in of_rank.values():
            link.close()


def refused(link: socket.socket) -> bytes:
    """Return what a stranger is told: nothing, the connection ends."""
    try:
        return link.recv(1)
    except ConnectionResetError:
        return b""


def test_ranks_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script_module, "CONNECT_DEADLINE", 0.05)
    with pytest.raises(PunieError, match=r"rank 0 cannot be connected at 127\.0\.0\.1") as raised:
        gathered(Exchange(2), 0, {})
    assert "hostfile" in raised.value.error.hint


def test_who_comes_too_late_is_not_let_in(monkeypatch: pytest.MonkeyPatch):
    """Else strangers that come all the time would keep rank 0 waiting for ever."""
    monkeypatch.setattr(script_module, "CONNECT_DEADLINE", 0.0)
    world = Exchange(2)
    late: list[socket.socket] = []

    def come(data: bytes, _size: int) -> bytes:
        late.append(socket.create_connection(("127.0.0.1", int.from_bytes(data[:2]))))
        late[0].sendall(frame(Hello(1, data[2:])))
        return data

    monkeypatch.setattr(world, "from_leader", come)
    with pytest.raises(PunieError, match="timed out"):
        gathered(world, 0, {})
    late[0].close()
