"""A real worker process with a supervisor made of asyncio: the wire, nothing else, is faked.

It keeps deltas as the journal would, answers `StoreDelta`, and collects what the worker sends.
"""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Self, assert_never

import msgspec

from punie_protocol import jsonrpc
from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import LinkClosed, WireError
from punie_protocol.handshake import accept_child, version
from punie_protocol.jsonrpc import Envelope
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Isolation, Limits
from punie_protocol.messages.to_supervisor import (
    AgentMessage,
    EffectFinished,
    EffectStarted,
    Hello,
    ModelState,
    Pong,
    ProjectFailed,
    ProjectReady,
    Ready,
    StoreDelta,
    ToSupervisor,
)
from punie_protocol.messages.to_worker import (
    ClientMessage,
    CloseProject,
    CloseSession,
    OpenProject,
    OpenSession,
    Ping,
    SessionHistory,
    Stop,
    Stored,
    Welcome,
)

PATIENCE = 15.0
"""Seconds any wait here may take."""


class Turn(msgspec.Struct):
    """The response to a prompt, and the updates that came before it."""

    response: Envelope
    updates: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        """The result; fails when the prompt did."""
        assert isinstance(self.response.result, msgspec.Raw), self.response
        return msgspec.json.decode(self.response.result)

    @property
    def error(self) -> jsonrpc.RpcError:
        """The error; fails when there is none."""
        assert isinstance(self.response.error, msgspec.Raw), self.response
        return jsonrpc.decode_error(self.response.error)

    @property
    def wire_error(self) -> WireError:
        """The error's `WireError`."""
        data = self.error.data
        assert isinstance(data, jsonrpc.RpcErrorData)
        assert not isinstance(data.punie, msgspec.UnsetType)
        return data.punie

    def text(self, kind: str = "agent_message_chunk") -> str:
        """All text of a kind."""
        return "".join(one["content"]["text"] for one in self.of(kind))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The updates of a kind."""
        return [one for one in self.updates if one["sessionUpdate"] == kind]

    def tools(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """Every tool call that ended: name, parent and last update, in order of the end."""
        return [
            (meta["tool"], meta.get("parent"), one)
            for one in self.of("tool_call_update")
            for meta in [one["_meta"]["punie"]]
        ]


class WorkerHarness:
    """``async with WorkerHarness(model_socket) as worker``; the process is gone after it."""

    def __init__(self, model_socket: Path | str) -> None:
        self.hello: Hello | None = None
        self.deltas: defaultdict[str, list[bytes]] = defaultdict(list)
        self.prompts_of_deltas: list[str] = []
        self.store_error: WireError | None = None
        self.updates: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._model_socket = str(model_socket)
        self._ids = itertools.count(1)
        self._answers: dict[Any, asyncio.Future[Envelope]] = {}
        self._stray: list[Envelope] = []
        self._projects: dict[str, asyncio.Future[ProjectReady | ProjectFailed]] = {}
        self._pongs: dict[int, asyncio.Future[Pong]] = {}

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        self.process = _start(theirs)
        decoder = MessageDecoder[ToSupervisor]("supervisor", ToSupervisor)
        self.link = await FrameLink.over(ours, decoder, name="worker")
        self.hello = await accept_child(self.link)
        await self.link.send(
            Welcome(
                protocol=PROTOCOL,
                version=version(),
                limits=Limits(),
                model_socket=self._model_socket,
            )
        )
        async with asyncio.timeout(PATIENCE):
            assert isinstance(await self.link.receive(), Ready)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.link.abort("test over")
        try:
            await self.wait_ended()
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            await asyncio.gather(self._reader, return_exceptions=True)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self.process.pid

    async def wait_ended(self, within: float = 5.0) -> int:
        """Return the exit status; fails when the worker lives on."""
        async with asyncio.timeout(within):
            while (status := self.process.poll()) is None:  # noqa: ASYNC110 (no event to wait for)
                await asyncio.sleep(0.005)
        return status

    async def open_project(
        self, root: Path, project_id: str = "p1", isolation: Isolation = Isolation.PROCESS
    ) -> ProjectReady | ProjectFailed:
        """Open a project and return the worker's answer."""
        future = asyncio.get_running_loop().create_future()
        self._projects[project_id] = future
        await self.link.send(
            OpenProject(
                project_id=project_id,
                root=_real(root),
                isolation=isolation,
                client_id=f"client-{project_id}",
            )
        )
        async with asyncio.timeout(PATIENCE):
            return await future

    async def close_project(self, project_id: str) -> None:
        """Close a project; there is no answer."""
        await self.link.send(CloseProject(project_id=project_id, reason="test"))

    async def open_session(
        self, session_id: str = "s1", project_id: str = "p1", deltas: list[bytes] | None = None
    ) -> None:
        """Make a session known, and create it as a client does."""
        self.deltas[session_id] = list(deltas or [])
        await self.link.send(
            OpenSession(session_id=session_id, project_id=project_id, deltas=deltas or [])
        )

    async def new_session(self, session_id: str = "s1", project_id: str = "p1") -> Envelope:
        """Open a session and answer with the response to ``session/new``."""
        await self.open_session(session_id, project_id)
        params = {"cwd": "/", "mcpServers": [], "_meta": {"punie": {"sessionId": session_id}}}
        return await self.request(session_id, "session/new", params)

    async def close_session(self, session_id: str) -> None:
        """Close a session; there is no answer."""
        await self.link.send(CloseSession(session_id=session_id, reason="test"))

    async def send_history(self, deltas: list[bytes], session_id: str = "s1") -> None:
        """Send more of the conversation of the session just opened."""
        self.deltas[session_id] += deltas
        await self.link.send(SessionHistory(session_id=session_id, deltas=deltas))

    async def send_raw(self, session_id: str, body: bytes) -> None:
        """Send a client's bytes."""
        await self.link.send(ClientMessage(session_id=session_id, body=body))

    async def notify(self, session_id: str, method: str, params: Any) -> None:
        """Send a notification."""
        await self.send_raw(session_id, jsonrpc.notification(method, params))

    async def request(self, session_id: str, method: str, params: Any) -> Envelope:
        """Send a request and return the response."""
        async with asyncio.timeout(PATIENCE):
            return await (await self.start_request(session_id, method, params))

    async def start_request(
        self, session_id: str, method: str, params: Any
    ) -> asyncio.Future[Envelope]:
        """Send a request; the future is its response."""
        id = next(self._ids)
        answer: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._answers[id] = answer
        await self.send_raw(session_id, jsonrpc.request(id, method, params))
        return answer

    async def start_prompt(
        self, text: str, session_id: str = "s1", prompt_id: str = "q1"
    ) -> asyncio.Future[Envelope]:
        """Send a prompt; the future is its response."""
        params = {
            "sessionId": session_id,
            "prompt": [{"type": "text", "text": text}],
            "_meta": {"punie": {"promptId": prompt_id, "queueMs": 1.5}},
        }
        return await self.start_request(session_id, "session/prompt", params)

    async def prompt(self, text: str, session_id: str = "s1", prompt_id: str = "q1") -> Turn:
        """Send a prompt and return the whole turn."""
        before = len(self.updates[session_id])
        answer = await self.start_prompt(text, session_id, prompt_id)
        async with asyncio.timeout(PATIENCE):
            response = await answer
        return Turn(response, self.updates[session_id][before:])

    async def until(self, condition: Any, within: float = PATIENCE) -> None:
        """Wait until `condition()` is true."""
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 (no event to wait for)
                await asyncio.sleep(0.005)

    async def stray(self) -> Envelope:
        """Return the next answer that belongs to no request of ours."""
        await self.until(lambda: bool(self._stray))
        return self._stray.pop(0)

    async def ping(self) -> Pong:
        """Return the answer to a ping."""
        nonce = next(self._ids)
        self._pongs[nonce] = asyncio.get_running_loop().create_future()
        await self.link.send(Ping(nonce=nonce))
        async with asyncio.timeout(PATIENCE):
            return await self._pongs[nonce]

    async def stop(self, deadline_s: float = 2.0) -> int:
        """Ask the worker to stop and return its exit status."""
        await self.link.send(Stop(reason="test", deadline_s=deadline_s))
        return await self.wait_ended()

    async def _read(self) -> None:
        try:
            while True:
                await self._take(await self.link.receive())
        except LinkClosed as closed:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(closed)
                    answer.exception()

    async def _take(self, message: ToSupervisor) -> None:
        match message:
            case AgentMessage(session_id=session_id, body=body):
                self._agent_message(session_id, jsonrpc.decode(body))
            case StoreDelta():
                await self._store(message)
            case ProjectReady(project_id=project_id) | ProjectFailed(project_id=project_id):
                self._projects.pop(project_id).set_result(message)
            case Pong(nonce=nonce):
                self._pongs.pop(nonce).set_result(message)
            case Hello() | Ready() | ModelState() | EffectStarted() | EffectFinished():
                raise AssertionError(message)
            case _:
                assert_never(message)

    async def _store(self, delta: StoreDelta) -> None:
        if self.store_error is None:
            assert delta.ordinal == len(self.deltas[delta.session_id])
            self.deltas[delta.session_id].append(delta.data)
            self.prompts_of_deltas.append(delta.prompt_id)
        await self.link.send(Stored(request_id=delta.request_id, error=self.store_error))

    def _agent_message(self, session_id: str, envelope: Envelope) -> None:
        if envelope.method == "session/update":
            assert isinstance(envelope.params, msgspec.Raw)
            params = msgspec.json.decode(envelope.params)
            assert params["sessionId"] == session_id
            self.updates[session_id].append(params["update"])
        elif (answer := self._answers.pop(envelope.id, None)) is not None:
            answer.set_result(envelope)
        else:
            self._stray.append(envelope)


def _start(control: socket.socket) -> subprocess.Popen[bytes]:
    """Start a worker on its end of the control socket, which it takes over."""
    fd = control.fileno()
    command = [sys.executable, "-m", "punie_workers.main", "--control-fd", str(fd)]
    process = subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE)
    control.close()
    return process


def _real(root: Path) -> str:
    return os.path.realpath(root)
