"""The model host as a child process, over real sockets."""

import asyncio
import importlib.util
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import pytest

from punie_model_host.desk import MAX_OF_CLIENT
from punie_model_host.intake import MAX_COUNTS
from punie_protocol import errors
from punie_protocol.codec import MessageDecoder, encode_frame
from punie_protocol.handshake import accept_child, greet_model_host, version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Limits, Priority, Role
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelChanged,
    PrefillProgress,
    Refused,
    TextDelta,
    TokenCount,
    ToModelClient,
)
from punie_protocol.messages.to_model_host import (
    CancelGenerate,
    ClientHello,
    CountTokens,
    Generate,
    LoadModel,
    Ping,
    Sampling,
    Stop,
    ToolSchema,
    UserMessage,
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
from punie_workers.model_client import ModelClient
from punie_workers.models import Models
from punie_workers.prompt_report import describe
from punie_workers.prompts import ProjectParts
from tests.support.tiny_model import make_tiny_model

DEADLINE = 15.0
EMBEDDED_LIMIT = 150
TOLD_PARTS = ["core", "stubs", "tools", "project"]
ROOT = Path(__file__).parents[2]
PARENT = """\
import subprocess, sys, time
child = subprocess.Popen(sys.argv[2:], pass_fds=[int(sys.argv[1])])
print(child.pid, flush=True)
time.sleep(60)
"""
_supervisor_side: MessageDecoder[ToSupervisor] = MessageDecoder("supervisor", ToSupervisor)
_client_side: MessageDecoder[ToModelClient] = MessageDecoder("client", ToModelClient)


@dataclass
class RunningHost:
    """A model host, and the supervisor's end of its control link."""

    process: subprocess.Popen[bytes]
    control: FrameLink[ToSupervisor]
    socket: Path
    log: Path

    async def state(self, request_id: int = -1) -> ModelState:
        """Return the state that ends a load."""
        while True:
            message = await self.control.receive()
            match message:
                case ModelState(state=Load.READY | Load.FAILED, request_id=id) if id == request_id:
                    return message
                case ModelState() | EngineReport():
                    continue
                case _:
                    pytest.fail(f"unexpected {message}")

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[FrameLink[ToModelClient]]:
        """Connect as a worker does."""
        link = await FrameLink.connect(str(self.socket), _client_side, name="host")
        try:
            await greet_model_host(link)
            yield link
        finally:
            link.close()

    async def pong(self) -> Pong:
        """Ask whether the loop is alive."""
        await self.control.send(Ping(nonce=7))
        while not isinstance(message := await self.control.receive(), Pong):
            assert isinstance(message, ModelState | EngineReport)
        return message

    async def ended(self) -> int:
        """Wait for the process to end and return its exit code."""
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"alive after {DEADLINE} s"
            await asyncio.sleep(0.01)
        return self.process.returncode


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: one that talks without end, one that answers, one that is half-copied."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "endless", says=["tick", " tock"], loop=True, context_window=1_000_000)
    (folder / "endless" / "profile.toml").write_text("[sampling]\nmax_tokens = 900000\n")
    make_tiny_model(folder / "brief", says=["Hello", " there", "."])
    make_tiny_model(folder / "torn")
    weights = folder / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def run_host(
    models: Path,
    folder: Path,
    model: str,
    test: Callable[[RunningHost], Awaitable[None]],
    *,
    greet: bool = True,
    extra: dict[str, str] | None = None,
    program: str = "punie_model_host.main",
) -> None:
    """Start a host, give it to `test`, end it whatever happened."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        path, log = folder / "model.sock", folder / "host.log"
        with theirs, log.open("wb") as stderr:
            command = host_command(theirs.fileno(), path, models, model, program)
            process = start(command, theirs.fileno(), stderr.fileno(), path.parent, extra)
        control = await FrameLink.over(ours, _supervisor_side, name="host")
        try:
            async with asyncio.timeout(DEADLINE):
                if greet:
                    await accept_child(control)
                    await control.send(welcome())
                    assert isinstance(await control.receive(), Ready)
                await test(RunningHost(process, control, path, log))
        except BaseException as error:
            error.add_note(log.read_text())
            raise
        finally:
            control.close()
            process.kill()
            process.wait(5)

    asyncio.run(main())


def host_command(
    fd: int, path: Path, models: Path, model: str, program: str = "punie_model_host.main"
) -> list[str]:
    command = [sys.executable, "-m", program, "--control-fd", str(fd)]
    return [*command, "--socket", str(path), "--models-dir", str(models), "--model", model]


def start(
    command: list[str], fd: int, stderr: int, home: Path, extra: dict[str, str] | None
) -> subprocess.Popen[bytes]:
    env = {"PATH": os.environ["PATH"], "HOME": str(home)} | (extra or {})
    return subprocess.Popen(
        command, pass_fds=[fd], env=env, stdin=subprocess.DEVNULL, stderr=stderr, cwd=ROOT
    )


def welcome(protocol: int = PROTOCOL) -> Welcome:
    return Welcome(protocol=protocol, version=version(), limits=Limits())


def ask(request_id: int, text: str = "hi", **sampling: object) -> Generate:
    return Generate(
        request_id=request_id,
        client_id="c",
        conversation_id=f"v{request_id}",
        priority=Priority.INTERACTIVE,
        messages=[UserMessage(text=text)],
        sampling=Sampling(**sampling),  # ty: ignore[invalid-argument-type]
    )


async def answer(link: FrameLink[ToModelClient], request_id: int) -> tuple[str, Finished | Failed]:
    """Return the text of a request's answer, and how it ended; what others get is dropped."""
    return (await answers(link, {request_id}))[request_id]


async def answers(
    link: FrameLink[ToModelClient], request_ids: set[int]
) -> dict[int, tuple[str, Finished | Failed]]:
    """Return the text of each request's answer, and how it ended."""
    texts = dict.fromkeys(request_ids, "")
    ends: dict[int, tuple[str, Finished | Failed]] = {}
    while len(ends) < len(texts):
        message = await link.receive()
        match message:
            case TextDelta(request_id=id, text=more) if id in texts:
                texts[id] += more
            case Finished(request_id=id) | Failed(request_id=id) if id in texts:
                ends[id] = texts[id], message
            case _:
                continue
    return ends


async def first_text(link: FrameLink[ToModelClient]) -> None:
    """Wait until the model speaks."""
    while not isinstance(message := await link.receive(), TextDelta):
        assert isinstance(message, PrefillProgress | ModelChanged), message


def test_answers_over_its_socket(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        state = await host.state()
        assert state.model is not None
        assert state.state is Load.READY
        assert state.model.name == "brief"
        assert stat.S_IMODE(host.socket.stat().st_mode) == 0o600
        async with host.client() as link:
            await link.send(ask(1))
            text, end = await answer(link, 1)
        assert text == "Hello there."
        assert isinstance(end, Finished)
        assert end.usage.output_tokens == 4
        await host.control.send(Stop(reason="test", deadline_s=5))
        assert await host.ended() == 0
        assert not host.socket.exists()

    run_host(models, tmp_path, "brief", test)


def test_requests_of_several_clients_each_complete(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async def one(number: int) -> None:
            async with host.client() as link:
                for request in range(3):
                    await link.send(ask(request, f"client {number}"))
                ends = await answers(link, {0, 1, 2})
                assert [text for text, _ in ends.values()] == ["Hello there."] * 3

        # before the model is loaded: they wait in the queue
        await asyncio.gather(*(one(number) for number in range(6)))

    run_host(models, tmp_path, "brief", test)


def test_loop_answers_while_the_engine_decodes(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1))
            await first_text(link)
            pong = await host.pong()
            assert (pong.nonce, pong.busy) == (7, 1)
            await link.send(CancelGenerate(request_id=1))
            _, end = await answer(link, 1)
            assert isinstance(end, Failed)
            assert isinstance(end.error, errors.Cancelled)
            assert end.usage.output_tokens > 0
        assert (await host.pong()).busy == 0

    run_host(models, tmp_path, "endless", test)


def test_hung_evaluation_ends_the_process(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1))
            assert await host.ended() == 70
        assert "critical engine-hangs" in host.log.read_text()

    run_host(models, tmp_path, "brief", test, program="tests.support.hung_model_host")


def test_a_disk_that_hangs_while_nothing_is_asked_ends_the_process_when_something_is(
    models: Path, tmp_path: Path
) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1))
            await answer(link, 1)
            while "hangs at its disk" not in host.log.read_text():  # noqa: ASYNC110  its log
                await asyncio.sleep(0.01)
            assert (await host.pong()).busy == 0
            await link.send(ask(2))
            assert await host.ended() == 70
        assert "critical engine-hangs" in host.log.read_text()

    run_host(models, tmp_path, "brief", test, program="tests.support.hung_disk_host")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process: Linux alone")
def test_no_descriptor_for_a_client_harms_nobody(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        await host.state()
        before = resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        link = await FrameLink.connect(str(host.socket), _client_side, name="host")
        while "accept-failed" not in host.log.read_text():  # noqa: ASYNC110  its log
            await asyncio.sleep(0.01)
        resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, before)
        await greet_model_host(link)
        await link.send(ask(1))
        assert (await answer(link, 1))[0] == "Hello there."
        link.close()

    run_host(models, tmp_path, "brief", test)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_the_limit_of_descriptors_stays_as_it_was(models: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = (512, before[1])

    async def test(host: RunningHost) -> None:
        assert (await host.state()).state is Load.READY
        assert resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE) == wanted

    resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
    try:
        run_host(models, tmp_path, "brief", test)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_disconnect_cancels(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1))
            await link.send(ask(2))
            await first_text(link)
            assert (await host.pong()).busy == 2
        while (await host.pong()).busy:
            continue
        async with host.client() as link:
            await link.send(ask(1, max_tokens=2))
            assert (await answer(link, 1))[0] == "tick tock"

    run_host(models, tmp_path, "endless", test)


def test_end_of_control_link_ends_the_process(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1))
            await first_text(link)
            host.control.abort("the supervisor dies")
            assert await host.ended() != 0

    run_host(models, tmp_path, "endless", test)


def test_sigterm_is_stop(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1))
            await first_text(link)
            host.process.send_signal(signal.SIGTERM)
            _, end = await answer(link, 1)
            assert isinstance(end, Failed)
            assert isinstance(end.error, errors.Cancelled)
        assert await host.ended() == 0

    run_host(models, tmp_path, "endless", test)


def test_a_stop_tells_who_waits_after_an_earlier_answer_too(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1, max_tokens=2))
            assert (await answer(link, 1))[0] == "tick tock"
            await link.send(ask(2))
            await first_text(link)
            await host.control.send(Stop(reason="test", deadline_s=4.0))
            _, end = await answer(link, 2)
            assert isinstance(end, Failed)
            assert isinstance(end.error, errors.Cancelled)
        assert await host.ended() == 0

    run_host(models, tmp_path, "endless", test)


def test_bad_folder_keeps_the_old_model(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        await host.state()
        await host.control.send(LoadModel(request_id=5, model=str(models / "torn")))
        state = await host.state(5)
        assert state.state is Load.FAILED
        assert state.model is not None
        assert state.model.name == "brief"
        assert isinstance(state.error, errors.ModelLoadFailed)
        assert (state.error.file, state.error.folder) == ("model.safetensors", str(models / "torn"))
        async with host.client() as link:
            await link.send(ask(1))
            assert (await answer(link, 1))[0] == "Hello there."

    run_host(models, tmp_path, "brief", test)


def test_switch_waits_for_the_request_under_way_and_is_announced(
    models: Path, tmp_path: Path
) -> None:
    async def test(host: RunningHost) -> None:
        await host.state()
        async with host.client() as link:
            await link.send(ask(1, max_tokens=400))
            await first_text(link)
            await host.control.send(LoadModel(request_id=5, model="brief"))
            _, end = await answer(link, 1)
            assert isinstance(end, Finished)
            assert end.usage.output_tokens == 400
            assert isinstance(changed := await link.receive(), ModelChanged)
            assert changed.model.name == "brief"
            assert (await host.state(5)).state is Load.READY
            await link.send(ask(2))
            assert (await answer(link, 2))[0] == "Hello there."

    run_host(models, tmp_path, "endless", test)


def test_lives_on_without_a_model(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        state = await host.state()
        assert (state.state, state.model) == (Load.FAILED, None)
        async with host.client() as link:
            await link.send(ask(1))
            _, end = await answer(link, 1)
            assert isinstance(end, Failed)
            assert isinstance(end.error, errors.ModelUnavailable)
            assert "half-copied" in end.error.message
            await host.control.send(LoadModel(request_id=2, model="brief"))
            assert (await host.state(2)).state is Load.READY
            await link.send(ask(3))
            assert (await answer(link, 3))[0] == "Hello there."

    run_host(models, tmp_path, "torn", test)


def test_refuses_a_client_of_another_protocol(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        link = await FrameLink.connect(str(host.socket), _client_side, name="host")
        hello = ClientHello(
            protocol=PROTOCOL + 1, version="9", role=Role.WORKER, pid=1, limits=Limits()
        )
        await link.send(hello)
        refused = await link.receive()
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, errors.VersionSkew)
        with pytest.raises(errors.LinkClosed):
            await link.receive()

    run_host(models, tmp_path, "brief", test)


def test_leaves_when_the_supervisor_speaks_another_protocol(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        await accept_child(host.control)
        await host.control.send(welcome(PROTOCOL + 1))
        assert await host.ended() == 1
        assert "run: punie restart" in host.log.read_text()

    run_host(models, tmp_path, "brief", test, greet=False)


def test_garbage_harms_nobody_else(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as good:
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\4abcd", b"\xff" * 64, b"\0"):
                _, writer = await asyncio.open_unix_connection(str(host.socket))
                writer.write(garbage)
                await writer.drain()
                writer.close()
            greeted = await FrameLink.connect(str(host.socket), _client_side, name="host")
            await greet_model_host(greeted)
            assert greeted._transport is not None
            greeted._transport.write(bytes(encode_frame(Ping(nonce=1))))  # not for the model host
            async for message in greeted:  # until the host hangs up
                assert isinstance(message, ModelChanged)
            await good.send(ask(1))
            assert (await answer(good, 1))[0] == "Hello there."

    run_host(models, tmp_path, "brief", test)


def test_too_many_requests_are_refused(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            for number in range(MAX_OF_CLIENT + 1):
                await link.send(ask(number))
            _, end = await answer(link, MAX_OF_CLIENT)
            assert isinstance(end, Failed)
            assert isinstance(end.error, errors.Overloaded)
            assert (await host.pong()).busy == MAX_OF_CLIENT

    run_host(models, tmp_path, "endless", test)


def test_one_bad_request_ends_alone(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1, temperature=-3.0))
            await link.send(ask(2))
            _, end = await answer(link, 1)
            assert isinstance(end, Failed)
            assert "temperature" in end.error.message
            assert (await answer(link, 2))[0] == "Hello there."

    run_host(models, tmp_path, "brief", test)


async def counted(link: FrameLink[ToModelClient], request_id: int) -> TokenCount | Failed:
    """Return the answer to a `CountTokens`."""
    while True:
        match await link.receive():
            case (TokenCount() | Failed()) as message if message.request_id == request_id:
                return message
            case _:
                continue


def test_counts_tokens_as_an_answer_would_be_asked_for(models: Path, tmp_path: Path) -> None:
    opening = len("<|im_start|>assistant\n") - len("<|im_start|>") + 1

    async def test(host: RunningHost) -> None:
        await host.state()
        tool = ToolSchema(name="t", description="d", parameters='{"type": "object"}')
        async with host.client() as link:
            for number, text in enumerate(["hi", "<|im_end|> in a text"]):
                request = msgspec.structs.replace(ask(number, text), tools=[tool])
                await link.send(request)
                _, end = await answer(link, number)
                assert isinstance(end, Finished)
                messages, tools = request.messages, request.tools
                await link.send(CountTokens(request_id=99, messages=messages, tools=tools))
                count = await counted(link, 99)
                assert isinstance(count, TokenCount)
                assert count.tokens + opening == end.usage.input_tokens

    run_host(models, tmp_path, "brief", test)


def test_counting_waits_for_no_answer_and_fails_alone(models: Path, tmp_path: Path) -> None:
    async def test(host: RunningHost) -> None:
        await host.state()
        async with host.client() as link:
            await link.send(ask(1))
            await first_text(link)
            user = UserMessage(text="hi")
            bad = ToolSchema(name="t", description="d", parameters="[")
            await link.send(CountTokens(request_id=2, messages=[]))
            await link.send(CountTokens(request_id=3, messages=[user], tools=[bad]))
            await link.send(CountTokens(request_id=4, messages=[user]))
            for number in (2, 3):
                failed = await counted(link, number)
                assert isinstance(failed, Failed)
                assert isinstance(failed.error, errors.InvalidRequest)
            assert isinstance(await counted(link, 4), TokenCount)
            assert (await host.pong()).busy == 1

    run_host(models, tmp_path, "endless", test)


def test_counts_are_bounded_and_need_a_model(models: Path, tmp_path: Path) -> None:
    async def many(host: RunningHost) -> None:
        await host.state()
        async with host.client() as link:
            big = UserMessage(text="word " * 20_000)
            for number in range(MAX_COUNTS + 1):
                await link.send(CountTokens(request_id=number, messages=[big]))
            refused = await counted(link, MAX_COUNTS)
            assert isinstance(refused, Failed)
            assert isinstance(refused.error, errors.Overloaded)

    async def none(host: RunningHost) -> None:
        await host.state()
        async with host.client() as link:
            await link.send(CountTokens(request_id=1, messages=[UserMessage(text="hi")]))
            failed = await counted(link, 1)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, errors.ModelUnavailable)

    run_host(models, tmp_path, "brief", many)
    run_host(models, tmp_path, "torn", none)


@pytest.mark.parametrize(("model", "names"), [("embedded", ["core"]), ("brief", TOLD_PARTS)])
def test_what_a_model_is_told_is_reported(
    models: Path, tmp_path: Path, model: str, names: list[str]
) -> None:
    """Through the worker's client. The embedded model's size is a promise."""

    async def test(host: RunningHost) -> None:
        assert (await host.state()).state is Load.READY
        here = Models(ModelClient(str(host.socket)))
        try:
            info = await here.info(None)
            report = await describe(here, info, None, ProjectParts("demo", "Use tabs."))
        finally:
            await here.close()
        assert report.exact
        assert [part.name for part in report.parts] == names
        assert all(part.tokens > 0 for part in report.parts)
        assert report.tokens == sum(part.tokens for part in report.parts)
        assert model != "embedded" or report.tokens <= EMBEDDED_LIMIT

    run_host(models, tmp_path, model, test)


def test_stale_socket_is_replaced_and_a_file_is_not(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def test(host: RunningHost) -> None:
        async with host.client() as link:
            await link.send(ask(1))
            assert (await answer(link, 1))[0] == "Hello there."

    run_host(models, tmp_path, "brief", test)
    path.unlink(missing_ok=True)
    path.write_text("mine")

    async def refused(host: RunningHost) -> None:
        await accept_child(host.control)
        await host.control.send(welcome())
        assert await host.ended() == 1
        assert "is no socket" in host.log.read_text()

    run_host(models, tmp_path, "brief", refused, greet=False)
    assert path.read_text() == "mine"


def test_usage_without_a_control_link() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "punie_model_host.main", "--model", "embedded"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 2
    assert "--control-fd" in done.stderr


@pytest.mark.parametrize("given", [True, False])
def test_says_which_blas_it_uses(models: Path, tmp_path: Path, given: bool) -> None:
    # any library will do to see that it is loaded; one without BLAS leaves MLX its own
    some = importlib.util.find_spec("msgspec._core")
    assert some is not None
    assert some.origin is not None
    library = shutil.copy(some.origin, tmp_path / "some.so") if given else ""
    loads = given and sys.platform == "linux"

    async def test(host: RunningHost) -> None:
        assert (await host.state()).state is Load.READY
        expected = library if loads else "'built into MLX'"
        assert f"info blas library={expected}" in host.log.read_text()
        if loads:
            mapped = psutil.Process(host.process.pid).memory_maps()
            assert str(library) in {region.path for region in mapped}

    run_host(models, tmp_path, "brief", test, extra={"PUNIE_OPENBLAS": str(library)})


def test_dies_with_its_parent_though_the_control_link_lives(models: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    command = host_command(theirs.fileno(), tmp_path / "model.sock", models, "endless")
    with theirs:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(theirs.fileno()), *command],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    async def main() -> None:
        control = await FrameLink.over(ours, _supervisor_side, name="host")
        try:
            async with asyncio.timeout(DEADLINE):
                await accept_child(control)
            parent.kill()
            if sys.platform != "linux":  # there the end of the link is what tells
                control.close()
            async with asyncio.timeout(DEADLINE):
                await control.wait_closed()
        finally:
            control.close()

    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        asyncio.run(main())
    gone, _ = psutil.wait_procs([child], timeout=DEADLINE)
    assert gone
