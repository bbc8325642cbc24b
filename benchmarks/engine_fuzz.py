"""Requests that no client should send, against a model host over its own socket.

``python -m benchmarks.engine_fuzz [--requests N] [--seed N] [--json]`` starts a model host with a
tiny model and fires at it from several connections at once; between the shots a plain request must
get the answer it always gets. The last line says how many were survived: each ended as the protocol
says, in time, by the process that was there at the start.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from benchmarks import common
from benchmarks.fuzz_requests import Act, Shot, plain, shot
from punie_protocol.codec import FrameDecoder, MessageDecoder, encode_frame
from punie_protocol.errors import FrameInvalid, Internal, WireError
from punie_protocol.handshake import accept_child, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits, Role
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelWelcome,
    TextDelta,
    TokenCount,
    ToModelClient,
)
from punie_protocol.messages.to_model_host import (
    CancelGenerate,
    ClientHello,
    ClientToModelHost,
    CountTokens,
    Generate,
    Ping,
    Welcome,
)
from punie_protocol.messages.to_supervisor import (
    EngineReport,
    Load,
    ModelState,
    Pong,
    Ready,
    ToSupervisor,
)
from tests.support.tiny_model import make_tiny_model

LANES: Final = 8
"""Connections at once."""
PATIENCE: Final = 60.0
"""Seconds in which the host has to say something: an answer's next message, the end of a link."""
EVERY: Final = 50
"""Shots of a lane between two plain requests."""
_PLAIN: Final = 9_000_000
"""Request ids of plain requests begin here; shots have their number."""
_CROWD: Final = 12
_READ: Final = 64 * 1024
_SETTINGS: Final = '{"memory_mb": 64, "disk_mb": 0}'
_ENDS: Final = (Finished, Failed, TokenCount)

_incoming: MessageDecoder[ToModelClient] = MessageDecoder("client", ToModelClient)
_outgoing: MessageDecoder[ClientToModelHost] = MessageDecoder("model host", ClientToModelHost)
_control: MessageDecoder[ToSupervisor] = MessageDecoder("supervisor", ToSupervisor)


class Broken(Exception):
    """The host did not do what the protocol says."""


class Gone(Exception):
    """The host closed the connection."""


@dataclass
class Tally:
    """What came of all shots. `faults` are those that the host did not survive, or not well."""

    seed: int
    requests: int
    ends: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    internal: list[str] = field(default_factory=list[str])
    plain_answers: int = 0

    @property
    def survived(self) -> int:
        """Shots after which all was as it should be."""
        return self.requests - len(self.faults)


def run(path: Path, count: int, seed: int, *, lanes: int = LANES) -> Tally:
    """Fire shots 0 to `count` of the sequence `seed` at the model host that listens at `path`."""
    return asyncio.run(fire(path, count, seed, lanes=lanes))


async def fire(path: Path, count: int, seed: int, *, lanes: int = LANES) -> Tally:
    """As `run`, for an event loop that is there."""
    tally = Tally(seed, count)
    expected = await _Lane(path, tally).plain(_PLAIN)
    async with asyncio.TaskGroup() as group:
        for lane in range(min(lanes, count)):
            numbers = range(lane, count, lanes)
            group.create_task(_Lane(path, tally, expected).fire(numbers))
    return tally


class _Lane:
    """One client after another: a connection is used until it ends."""

    def __init__(self, path: Path, tally: Tally, expected: str = "") -> None:
        self._path = path
        self._tally = tally
        self._expected = expected
        self._peer: Peer | None = None

    async def fire(self, numbers: range) -> None:
        """Fire those shots, one at a time; a plain request every now and then, and last."""
        for turn, number in enumerate(numbers, 1):
            each = shot(self._tally.seed, number)
            try:
                self._tally.ends[await self._one(each)] += 1
                if turn % EVERY == 0 or turn == len(numbers):
                    await self._check(_PLAIN + number)
            except (Broken, OSError, TimeoutError) as error:
                reason = f"{type(error).__name__}: {error}"
                self._tally.faults.append(f"shot {number} of seed {self._tally.seed}: {reason}")
                await self._leave()
        await self._leave()

    async def plain(self, request_id: int) -> str:
        """Return the text of the answer to a plain request, on a connection of its own."""
        await self._leave()
        peer = await self._connected()
        peer.send(plain(request_id))
        text = ""
        try:
            while not isinstance(message := await peer.next(), _ENDS):
                text += message.text if isinstance(message, TextDelta) else ""
        except Gone:
            raise Broken("the link ended instead of a plain request") from None
        finally:
            await self._leave()
        if not isinstance(message, Finished):
            raise Broken(f"a plain request got {message}")
        return text

    async def _check(self, request_id: int) -> None:
        answer = await self.plain(request_id)
        if answer != self._expected:
            raise Broken(f"a plain request got {answer!r} instead of {self._expected!r}")
        self._tally.plain_answers += 1

    async def _one(self, each: Shot) -> str:
        """Fire one shot, and return how it ended."""
        peer = await self._connected()
        try:
            return await self._act(peer, each)
        except Gone, ConnectionError:
            await self._leave()
            if _request_in(each) and each.act not in (Act.TWICE, Act.CROWD):
                raise Broken("the link ended instead of the request") from None
            return "link closed"

    async def _act(self, peer: Peer, each: Shot) -> str:
        match each.act:
            case Act.TORN:
                peer.send(each.frame[: each.number % len(each.frame)])
                return await self._left("torn")
            case Act.STRAY:
                for id in (each.number, -1, 2**63 - 1):
                    peer.send(encode_frame(CancelGenerate(request_id=id)))
            case Act.TWICE:
                peer.send(each.frame)
            case Act.CROWD:
                for number in range(_CROWD):
                    peer.send(plain(_PLAIN + number))
                peer.send(each.frame)
                await peer.next()
                return await self._left("left a crowd")
            case _:
                pass
        peer.send(each.frame)
        request = _request_in(each)
        if request is None:
            return await self._until_closed(peer)
        return await self._follow(peer, each, request.request_id)

    async def _follow(self, peer: Peer, each: Shot, id: int) -> str:
        seen = 0
        while True:
            if seen == each.after and each.act is Act.LEAVE:
                return await self._left("left")
            if seen == each.after and each.act is Act.CANCEL:
                peer.send(encode_frame(CancelGenerate(request_id=id)))
            message = await peer.next()
            seen += 1
            if isinstance(message, _ENDS) and message.request_id == id:
                return self._ended(message)

    def _ended(self, message: Finished | Failed | TokenCount) -> str:
        if isinstance(message, Failed):
            self._note(message.error)
            return type(message.error).__name__
        return type(message).__name__

    def _note(self, error: WireError) -> None:
        """Keep what looks like a defect of the host's own: the wall held, but nobody looked."""
        if isinstance(error, Internal) or "Error:" in error.message:
            self._tally.internal.append(error.message)

    async def _until_closed(self, peer: Peer) -> str:
        """Wait for the host to close a link on which something else than a request was sent; a
        frame that may go on is ended by us."""
        peer.finish()
        while True:
            await peer.next()

    async def _left(self, how: str) -> str:
        await self._leave()
        return how

    async def _connected(self) -> Peer:
        if self._peer is None:
            self._peer = await Peer.connect(self._path)
        return self._peer

    async def _leave(self) -> None:
        if self._peer is not None:
            await self._peer.close()
            self._peer = None


class Peer:
    """A connection to the host that can send anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameDecoder()
        self._payloads: list[bytes] = []

    @classmethod
    async def connect(cls, path: Path) -> Peer:
        """Connect and shake hands."""
        async with asyncio.timeout(PATIENCE):
            peer = cls(*await asyncio.open_unix_connection(path))
        try:
            await peer._greet()
        except BaseException:
            await peer.close()
            raise
        return peer

    async def _greet(self) -> None:
        self.send(encode_frame(_hello()))
        try:
            message = await self.next()
        except Gone:
            raise Broken("the link ended instead of a welcome") from None
        if not isinstance(message, ModelWelcome):
            raise Broken(f"instead of a welcome: {message}")

    def send(self, data: bytes | bytearray) -> None:
        """Send bytes; nothing waits for them to be taken."""
        self._writer.write(data)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):  # the host was first
            self._writer.write_eof()

    async def next(self) -> ToModelClient:
        """Return the next message. Raises `Gone` at the end of the link, `TimeoutError`."""
        async with asyncio.timeout(PATIENCE):
            while not self._payloads:
                if not (data := await self._reader.read(_READ)):
                    raise Gone
                self._frames.feed(data)
                self._payloads = list(self._frames.payloads())
        return _incoming.decode(self._payloads.pop(0))

    async def close(self) -> None:
        """Close at once; unsent bytes are lost."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):  # the host was first
            await self._writer.wait_closed()


def _request_in(each: Shot) -> Generate | CountTokens | None:
    """The request that the host must answer, None when the frame holds none."""
    if int.from_bytes(each.frame[:4]) != len(each.payload):
        return None
    try:
        message = _outgoing.decode(each.payload)
    except FrameInvalid:
        return None
    return message if isinstance(message, Generate | CountTokens) else None


def _hello() -> ClientHello:
    return ClientHello(
        protocol=PROTOCOL, version=version(), role=Role.WORKER, pid=os.getpid(), limits=Limits()
    )


# a host of our own


@dataclass(frozen=True, slots=True)
class Host:
    """A model host that runs, and the supervisor's end of its control link."""

    process: subprocess.Popen[bytes]
    control: FrameLink[ToSupervisor]
    socket: Path
    log: Path

    async def busy(self) -> int:
        """Return how many requests it has."""
        await self.control.send(Ping(nonce=1))
        async with asyncio.timeout(PATIENCE):
            while not isinstance(message := await self.control.receive(), Pong):
                continue
        return message.busy

    async def idle(self) -> bool:
        """Whether all requests are over, soon."""
        deadline = time.monotonic() + PATIENCE
        while await self.busy():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return psutil.Process(self.process.pid).memory_info().rss


@asynccontextmanager
async def running(folder: Path, model: Path) -> AsyncGenerator[Host]:
    """Run a model host with `model`, its files in `folder`; it is gone afterwards."""
    ours, theirs = socket.socketpair()
    path, log = folder / "model.sock", folder / "host.log"
    with theirs:
        process = _start(theirs.fileno(), path, model, log)
    control = await FrameLink.over(ours, _control, name="host")
    try:
        async with asyncio.timeout(PATIENCE):
            await accept_child(control)
            await control.send(Welcome(protocol=PROTOCOL, version=version(), limits=Limits()))
            await _ready(control)
        yield Host(process, control, path, log)
    except BaseException as error:
        error.add_note(log.read_text()[-5000:])
        raise
    finally:
        control.close()
        process.kill()
        process.wait(PATIENCE)


def _start(fd: int, path: Path, model: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "punie_model_host.main", "--settings", _SETTINGS]
    command += ["--control-fd", str(fd), "--socket", str(path)]
    command += ["--models-dir", str(model.parent), "--model", str(model)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(path.parent)}
    with log.open("wb") as stderr:
        return subprocess.Popen(
            command, pass_fds=[fd], env=environ, stderr=stderr, stdin=subprocess.DEVNULL
        )


async def _ready(control: FrameLink[ToSupervisor]) -> None:
    while True:
        match await control.receive():
            case ModelState(state=Load.READY):
                return
            case Ready() | EngineReport() | ModelState(state=Load.LOADING):
                continue
            case message:
                raise Broken(f"the host does not start: {message}")


async def _main(count: int, seed: int, folder: Path) -> dict[str, object]:
    model = make_tiny_model(folder / "model", context_window=512)
    started = time.monotonic()
    async with running(folder, model) as host:
        before, pid = host.resident, host.process.pid
        tally = await fire(host.socket, count, seed)
        same = await host.idle() and host.process.poll() is None
        return {
            "requests": count,
            "survived": tally.survived if same else 0,
            "same_process": same,
            "pid": pid,
            "seed": seed,
            "seconds": round(time.monotonic() - started, 1),
            "plain_answers": tally.plain_answers,
            "ends": dict(tally.ends),
            "faults": tally.faults[:20],
            "internal": Counter(tally.internal).most_common(20),
            "resident_mb_before": round(before / 1e6),
            "resident_mb_after": round(host.resident / 1e6) if same else 0,
        }


def main() -> None:
    """Fire, and print what was survived; exit status 1 unless all was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON alone, as the last line")
    parser.add_argument("--requests", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="which")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        result = asyncio.run(_main(options.requests, options.seed, Path(folder)))
    common.finish(result, as_json=options.json)
    sys.exit(0 if result["survived"] == options.requests else 1)


if __name__ == "__main__":
    main()
