"""``punie ask``: one turn, from the question to the answer."""

import asyncio
import contextlib
import os
import signal
import uuid
from enum import StrEnum
from typing import Any, NoReturn

import msgspec
from msgspec import Raw

from punie_protocol import client as punie
from punie_protocol.errors import LinkClosed, NotFound, PunieError, RemoteError
from punie_protocol.handshake import version
from punie_protocol.messages.common import Isolation
from punie_supervisor.cli import output
from punie_supervisor.cli.context import Deadline
from punie_supervisor.cli.exit_codes import ExitCode, wire_exit_code
from punie_supervisor.cli.printers import PRINTERS, Format
from punie_supervisor.clients import launch
from punie_supervisor.clients.connection import Client, check_version, connect
from punie_supervisor.clients.errors import DaemonUnreachable
from punie_supervisor.clients.turn import (
    PromptResult,
    TurnCollector,
)
from punie_supervisor.paths import Paths

CANCEL_PATIENCE = 3.0
"""How long a cancelled turn may take to say so before the client leaves, seconds."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, and how; `directory` is a real path, `model` a name or an absolute path."""

    text: str
    context: str
    directory: str
    model: str | None
    isolation: Isolation | None
    session: str | None
    last: bool
    format: Format
    deadline: Deadline


class Cause(StrEnum):
    """Why a turn is cancelled from here."""

    INTERRUPT = "interrupted"
    TIMEOUT = "timed out"


class _SessionInfo(msgspec.Struct, rename="camel"):
    session_id: str
    cwd: str


class _SessionPage(msgspec.Struct, rename="camel"):
    sessions: list[_SessionInfo]
    next_cursor: str | None = None


class _SessionId(msgspec.Struct, rename="camel"):
    session_id: str


def ask(question: Question) -> ExitCode:
    """Ask and print; return the exit code. Starts the daemon when none runs."""
    paths = Paths.from_environment()
    try:
        _ensure_daemon(paths, question)
        return asyncio.run(_Turn(question, paths).run())
    except DaemonUnreachable:
        if launch.is_running(paths):
            raise
        # It was ending just when we came.
        _ensure_daemon(paths, question)
        return asyncio.run(_Turn(question, paths).run())


def _ensure_daemon(paths: Paths, question: Question) -> None:
    if not launch.is_running(paths):
        output.say("starting the daemon (stop it with: punie down)")
    patience = question.deadline.within(launch.START_TIMEOUT)
    launch.ensure_running(paths, model=question.model, patience=patience)


class _Turn:
    """One turn on one connection. `run` may be called once."""

    def __init__(self, question: Question, paths: Paths) -> None:
        self._question = question
        self._paths = paths
        self._collector: TurnCollector | None = None
        self._cause: Cause | None = None
        self._denied = False
        self._printer = PRINTERS[question.format]()

    async def run(self) -> ExitCode:
        cancelled = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._cancel, Cause.INTERRUPT, cancelled)
        if self._question.deadline.limit_s is not None:
            left = self._question.deadline.within(float("inf"))
            loop.call_later(left, self._cancel, Cause.TIMEOUT, cancelled)
        work = asyncio.create_task(self._work(cancelled))
        watch = asyncio.create_task(self._give_up(cancelled, work))
        try:
            return await work
        except asyncio.CancelledError:
            return self._cancelled_code()
        finally:
            watch.cancel()

    def _cancel(self, cause: Cause, cancelled: asyncio.Event) -> None:
        if self._cause is not None and cause is Cause.INTERRUPT:
            _leave(ExitCode.INTERRUPTED)
        if self._cause is None:
            self._cause = cause
            cancelled.set()

    async def _give_up(self, cancelled: asyncio.Event, work: asyncio.Task[ExitCode]) -> None:
        await cancelled.wait()
        await asyncio.sleep(CANCEL_PATIENCE)
        output.say("the turn did not end in time; leaving it to the daemon")
        work.cancel()

    async def _work(self, cancelled: asyncio.Event) -> ExitCode:
        async with connect(self._paths, self._on_message) as client:
            daemon = await check_version(client)
            if daemon.split(".")[:2] != version().split(".")[:2]:
                output.say(f"note: the daemon is {daemon}, this is {version()}; run: punie restart")
            session_id, project = await self._session(client)
            if cancelled.is_set():
                return self._cancelled_code()
            prompt_id = uuid.uuid4().hex
            self._collector = TurnCollector(session_id, project, prompt_id)
            request = client.next_id()
            stopper = asyncio.create_task(self._send_cancel(client, request, cancelled))
            try:
                return await self._prompt(client, request, session_id, prompt_id)
            finally:
                stopper.cancel()

    async def _session(self, client: Client) -> tuple[str, str]:
        """Return the session's id and its project's root."""
        question, directory = self._question, self._question.directory
        if question.session is not None or question.last:
            session_id, root = await _find_session(client, question)
            if question.isolation is not None:
                params = punie.Isolate(cwd=root, isolation=question.isolation)
                await client.ask_daemon(punie.ISOLATE, params, dict)
            return session_id, root
        meta = {"punie": punie.SessionMeta(isolation=question.isolation)}
        params = {"cwd": directory, "mcpServers": [], "_meta": meta}
        answer = await client.call("session/new", params, _SessionId)
        return answer.session_id, directory

    async def _prompt(
        self, client: Client, request: int, session_id: str, prompt_id: str
    ) -> ExitCode:
        assert self._collector is not None
        params = {
            "sessionId": session_id,
            "prompt": _blocks(self._question),
            "_meta": {"punie": punie.PromptMeta(prompt_id=prompt_id, model=self._question.model)},
        }
        try:
            result = await client.call("session/prompt", params, PromptResult, id=request)
        except RemoteError as error:
            self._printer.finish(self._collector.fail(error.error, error.meta))
            output.say_error(error.error)
            return self._cancelled_code() if self._cause else wire_exit_code(error.error)
        self._printer.finish(self._collector.finish(result))
        return self._outcome(result)

    def _outcome(self, result: PromptResult) -> ExitCode:
        if result.stop_reason == "cancelled":
            return self._cancelled_code()
        if self._denied:
            output.say("error: a permission was denied; punie ask only reads")
            return ExitCode.DENIED
        if result.stop_reason != "end_turn":
            output.say(f"error: the turn ended early: {result.stop_reason}")
            return ExitCode.TURN_FAILED
        return ExitCode.OK

    def _cancelled_code(self) -> ExitCode:
        if self._cause is Cause.TIMEOUT:
            output.say_error(self._question.deadline.passed().error)
            return ExitCode.TIMED_OUT
        output.say("interrupted" if self._cause else "error: the turn was cancelled")
        return ExitCode.INTERRUPTED if self._cause else ExitCode.TURN_FAILED

    async def _send_cancel(self, client: Client, request: int, cancelled: asyncio.Event) -> None:
        await cancelled.wait()
        with contextlib.suppress(LinkClosed):  # `_prompt` says so
            await client.notify("$/cancel_request", {"requestId": request})

    async def _on_message(self, method: str, params: Raw) -> Any:
        match method:
            case "session/update":
                if self._collector is not None:
                    self._printer.event(self._collector.update(params))
            case punie.PROGRESS:
                note = msgspec.json.decode(params, type=punie.Progress)
                output.progress(note.text, note.done, note.total)
            case punie.ACCEPTED:
                self._printer.accepted(msgspec.json.decode(params, type=punie.Accepted))
            case "session/request_permission":
                self._denied = True
                return {"outcome": {"outcome": "cancelled"}}
            case _:  # extensions of a newer daemon are not for this client
                pass
        return None


async def _find_session(client: Client, question: Question) -> tuple[str, str]:
    """Return the id and the project's root of the session that `question` continues."""
    if question.session is not None:
        async for info in _sessions(client, None):
            if info.session_id == question.session:
                return info.session_id, info.cwd
        raise _no_session(f"no session {question.session}", question.session)
    async for info in _sessions(client, question.directory):
        return info.session_id, info.cwd
    raise _no_session(f"no session in {question.directory} yet", question.directory)


async def _sessions(client: Client, cwd: str | None) -> Any:
    """Yield the known sessions, most recent first."""
    cursor = None
    while True:
        params = {"cwd": cwd, "cursor": cursor}
        page = await client.ask_daemon("session/list", params, _SessionPage)
        for info in page.sessions:
            yield info
        cursor = page.next_cursor
        if cursor is None:
            return


def _blocks(question: Question) -> list[dict[str, str]]:
    blocks = [{"type": "text", "text": question.text}] if question.text else []
    if question.context:
        blocks.append({"type": "text", "text": question.context})
    return blocks


def _no_session(message: str, what: str) -> PunieError:
    return PunieError(
        NotFound(message=message, hint="leave the option out to begin one", what=what)
    )


def _leave(code: ExitCode) -> NoReturn:
    output.clear_progress()
    os._exit(code)
