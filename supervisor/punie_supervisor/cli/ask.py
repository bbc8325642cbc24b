"""``punie ask``: one turn, from the question to the answer."""

import asyncio
import contextlib
import os
import shlex
import signal
import uuid
from enum import StrEnum
from typing import Any, NoReturn

import msgspec
from msgspec import Raw

from punie_protocol import client as punie
from punie_protocol.errors import Denied, InvalidRequest, LinkClosed, PunieError, RemoteError
from punie_protocol.handshake import version
from punie_protocol.messages.common import Isolation
from punie_protocol.permissions import Mode, PromptPermissions
from punie_protocol.tool_types import Permission
from punie_supervisor.cli import denied, output, permission
from punie_supervisor.cli.context import Deadline, announce
from punie_supervisor.cli.exit_codes import ExitCode, wire_exit_code
from punie_supervisor.cli.printers import PRINTERS, Format
from punie_supervisor.clients import launch, sessions
from punie_supervisor.clients.connection import Client, check_version, connect
from punie_supervisor.clients.errors import DaemonUnreachable
from punie_supervisor.clients.turn import PromptResult, TurnCollector
from punie_supervisor.paths import Paths

CANCEL_PATIENCE = 3.0
"""How long a cancelled turn may take to say so before the client leaves, seconds."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, and how; `directory` is a real path, `model` a name, an absolute path or a
    server's address. `allow` are the classes of tools that need no question, `elsewhere` says that
    the directory was named, so that a session of another project is no answer to it."""

    text: str
    context: str
    directory: str
    elsewhere: bool
    model: str | None
    isolation: Isolation | None
    session: str | None
    last: bool
    allow: list[Permission]
    format: Format
    deadline: Deadline


class Cause(StrEnum):
    """Why a turn is cancelled from here."""

    INTERRUPT = "interrupted"
    TOLD = "told to end"
    """By SIGTERM, or by SIGHUP: the terminal was closed."""
    TIMEOUT = "timed out"


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
    announce(paths)
    patience = question.deadline.within(launch.START_TIMEOUT)
    launch.ensure_for_prompt(paths, model=question.model, patience=patience)


class _Turn:
    """One turn on one connection. `run` may be called once."""

    def __init__(self, question: Question, paths: Paths) -> None:
        self._question = question
        self._paths = paths
        self._collector: TurnCollector | None = None
        self._cause: Cause | None = None
        self._interactive = permission.is_interactive()
        self._said_no = False
        self._printer = PRINTERS[question.format]()

    async def run(self) -> ExitCode:
        cancelled = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._cancel, Cause.INTERRUPT, cancelled)
        loop.add_signal_handler(signal.SIGTERM, self._cancel, Cause.TOLD, cancelled)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # so it is under nohup
            loop.add_signal_handler(signal.SIGHUP, self._hang_up, cancelled)
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
        # Not at a second SIGTERM: `timeout` and shells send one signal twice.
        if self._cause is not None and cause is Cause.INTERRUPT:
            _leave(ExitCode.INTERRUPTED)
        if self._cause is None:
            self._cause = cause
            cancelled.set()

    def _hang_up(self, cancelled: asyncio.Event) -> None:
        """The terminal is gone: nothing can be written there, and the turn is still to be ended."""
        output.silence()
        self._cancel(Cause.TOLD, cancelled)

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
                code = await self._prompt(client, request, session_id, prompt_id)
                await self._say_what_goes_on(client, project)
            finally:
                stopper.cancel()
            return code

    async def _session(self, client: Client) -> tuple[str, str]:
        """Return the session's id and its project's root."""
        question, directory = self._question, self._question.directory
        if question.session is not None or question.last:
            found = await self._earlier(client)
            if question.isolation is not None:
                move = punie.Isolate(cwd=found.cwd, isolation=question.isolation)
                await client.ask_daemon(punie.ISOLATE, move, dict)
            return found.session_id, found.cwd
        meta = {"punie": punie.SessionMeta(isolation=question.isolation)}
        params = {"cwd": directory, "mcpServers": [], "_meta": meta}
        answer = await client.call("session/new", params, _SessionId)
        return answer.session_id, directory

    async def _earlier(self, client: Client) -> sessions.SessionInfo:
        if self._question.session is not None:
            found = await sessions.find(client, self._question.session)
            self._check_project(found)
            return found
        return await sessions.last(client, self._question.directory)

    def _check_project(self, found: sessions.SessionInfo) -> None:
        """Raise `PunieError` when the session is not of the project that was named with it."""
        directory = self._question.directory
        if self._question.elsewhere and found.cwd != directory:
            text = f"session {found.session_id} belongs to {found.cwd}, not to {directory}"
            raise PunieError(InvalidRequest(message=text, hint="leave out -C, or --session"))

    async def _prompt(
        self, client: Client, request: int, session_id: str, prompt_id: str
    ) -> ExitCode:
        assert self._collector is not None
        params = {
            "sessionId": session_id,
            "prompt": _blocks(self._question),
            "_meta": {"punie": self._meta(prompt_id)},
        }
        try:
            result = await client.call("session/prompt", params, PromptResult, id=request)
        except RemoteError as error:
            self._printer.finish(self._collector.fail(error.error, error.meta))
            output.say_error(error.error)
            return self._cancelled_code() if self._cause else wire_exit_code(error.error)
        self._printer.finish(self._collector.finish(result))
        return self._outcome(result)

    async def _say_what_goes_on(self, client: Client, project: str) -> None:
        """Say how many commands run in the background, however the turn ended."""
        query = punie.CommandsQuery(cwd=project)
        try:
            async with asyncio.timeout(CANCEL_PATIENCE / 2):
                report = await client.ask_daemon(punie.COMMANDS, query, punie.CommandsReport)
        except TimeoutError, PunieError:
            return  # the turn is answered; that its daemon is older, or just ends, is no news of it
        if count := len(report.commands):
            what = "1 background command goes" if count == 1 else f"{count} background commands go"
            output.say(f"{what} on: punie projects stop {shlex.quote(output.printable(project))}")

    def _meta(self, prompt_id: str) -> punie.PromptMeta:
        permissions = PromptPermissions(mode=self._mode(), allow=self._question.allow)
        return punie.PromptMeta(
            prompt_id=prompt_id, model=self._question.model, permissions=permissions
        )

    def _mode(self) -> Mode | None:
        """Without a terminal it only reads, but for what was allowed; on one the settings say what
        is asked about, unless the question itself allows something."""
        if self._question.allow:
            return Mode.ASK
        return None if self._interactive else Mode.READ_ONLY

    def _outcome(self, result: PromptResult) -> ExitCode:
        assert self._collector is not None
        report = self._collector.report
        if result.stop_reason == "cancelled":
            return self._cancelled_code()
        if result.stop_reason != "end_turn":
            why = report.stop_detail or result.stop_reason
            output.say(f"error: the turn ended early: {why}")
            return ExitCode.TURN_FAILED
        refused = denied.denied_calls(report.tool_calls)
        if refused and not self._said_no:
            for line in denied.sentences(refused, self._question.allow):
                output.say(line)
            return ExitCode.DENIED
        return ExitCode.OK

    async def _answer(self, params: Raw) -> dict[str, Any]:
        """Answer a permission question: as the person says, without one by dismissing it."""
        asked = permission.decode(params)
        if self._interactive:
            self._printer.pause()
            chosen = await permission.ask(asked)
            self._said_no = self._said_no or asked.refuses(chosen)
            return permission.outcome(chosen)
        if self._is_ours(asked):
            output.say(f"refused, as there is no terminal to ask on: {asked.title}")
            if asked.is_about_settings:
                output.say("to use them: punie trust")
            return permission.outcome(None)  # nobody said no: nobody was there
        text = "there is no terminal to ask on"
        raise PunieError(Denied(message=text, hint="answer it where the prompt came from"))

    def _is_ours(self, asked: permission.Asked) -> bool:
        """Whether it is about this prompt; another client of the session may have one too."""
        if self._collector is None:
            return False
        return asked.is_of(self._collector.prompt_id)

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
                return await self._answer(params)
            case _:  # extensions of a newer daemon are not for this client
                pass
        return None


def _blocks(question: Question) -> list[dict[str, str]]:
    blocks = [{"type": "text", "text": question.text}] if question.text else []
    if question.context:
        blocks.append({"type": "text", "text": question.context})
    return blocks


def _leave(code: ExitCode) -> NoReturn:
    output.clear_progress()
    os._exit(code)
