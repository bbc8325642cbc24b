"""Requests that the supervisor answers by itself: lists, modes, trust, timings, the prompt."""

import asyncio
import base64
import datetime
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec

from punie_protocol.client import CommandsReport, PromptReport, TrustReport, UseReport
from punie_protocol.engine import DoorStatus
from punie_protocol.errors import Cancelled, InvalidRequest, PunieError
from punie_protocol.jsonrpc import RpcId
from punie_supervisor import journal_ops as ops
from punie_supervisor import logs, perf, roots, router, trust
from punie_supervisor.journal import Journal
from punie_supervisor.models import Models
from punie_supervisor.registry import Registry
from punie_supervisor.servers import Progress
from punie_supervisor.turn import Pending
from punie_supervisor.workers import WorkerPool

PAGE: Final = 100
"""Sessions in one answer to ``session/list``."""


class Requests:
    """Each method returns the result of one kind of request, or raises `PunieError`."""

    def __init__(
        self,
        journal: Journal,
        journal_path: Path,
        registry: Registry,
        workers: WorkerPool[Pending],
        models: Models,
    ) -> None:
        self._journal = journal
        self._journal_path = journal_path
        self._registry = registry
        self._workers = workers
        self._models = models
        self._uses: dict[tuple[int, RpcId], asyncio.Task[UseReport]] = {}

    async def list_sessions(self, request: router.ListSessions) -> dict[str, Any]:
        """``session/list``"""
        params = request.params
        root = await _real_path(params.cwd)
        before = _cursor(params.cursor)
        found = await self._journal.run(ops.list_sessions, root, before, PAGE + 1)
        page: dict[str, Any] = {"sessions": [_session_info(summary) for summary in found[:PAGE]]}
        if len(found) > PAGE:
            page["nextCursor"] = _next_cursor(found[PAGE - 1])
        return page

    async def set_mode(self, request: router.SetMode) -> dict[str, Any]:
        """``session/set_mode``: durable, then told to the worker where the session is open."""
        mode = request.params.mode
        session = await self._registry.session(request.params.session_id)
        await self._journal.run(ops.set_mode, session.id, mode)
        if worker := self._workers.of_session(session.id):
            worker.set_mode(session.id, mode)
        logs.get(session=session.id).info("session.mode", mode=mode.value)
        return {}

    async def trust(self, request: router.Trust) -> TrustReport:
        """``_punie/trust``: durable, then told to the worker where the project is open."""
        project = await self._registry.project(request.params.cwd)
        wanted = request.params.trusted
        found = await asyncio.to_thread(trust.look, project.root, check=wanted)
        digest = found.digest if wanted else ""
        await self._registry.set_trust(project, digest)
        for worker in self._workers.having(project.id):
            worker.set_trust(project.id, digest)
        logs.get(root=project.root).info("project.trust", digest=digest)
        return TrustReport(
            root=project.root, files=found.files, digest=found.digest, trusted=bool(digest)
        )

    async def set_unconfined(self, request: router.Unconfined) -> dict[str, Any]:
        """``_punie/unconfined``: durable, then told to the worker where the project is open."""
        project = await self._registry.project(request.params.cwd)
        unconfined = request.params.unconfined
        await self._registry.set_unconfined(project, unconfined)
        for worker in self._workers.having(project.id):
            worker.set_unconfined(project.id, unconfined)
        logs.get(root=project.root).info("project.unconfined", unconfined=unconfined)
        return {}

    async def perf(self, request: router.Perf) -> msgspec.Raw:
        """``_punie/perf``"""
        query = request.params
        perf.check(query.turns)
        if query.session_id is not None:
            await self._registry.session(query.session_id)  # or there is none of that name
        root = await _real_path(query.cwd)
        return await asyncio.to_thread(
            perf.report, self._journal_path, query.session_id, root, query.turns
        )

    async def describe_prompt(self, request: router.DescribePrompt) -> PromptReport:
        """``_punie/prompt``: asks the project's worker, which may ask the model."""
        query = request.params
        self._models.check(query.model)
        project = await self._registry.project(query.cwd)
        with project.counted(), ExitStack() as held:
            backend = await self._models.obtain(query.model, _no_progress, held)
            worker = await self._workers.place(project)
            return await worker.describe(project.id, backend)

    async def commands(self, request: router.Commands) -> CommandsReport:
        """``_punie/commands``: asks the workers where some run, one that drains too."""
        query = request.params
        project = await self._registry.project(query.cwd)
        having = [one for one in self._workers.having(project.id) if one.programs.get(project.id)]
        asked = (worker.commands(project.id, stop=query.stop) for worker in having)
        found = [command for told in await asyncio.gather(*asked) for command in told]
        return CommandsReport(root=project.root, commands=found)

    async def serve(self, request: router.Serve) -> DoorStatus:
        """``_punie/serve``: starts the model host if need be, and does not wait for its model."""
        query = request.params
        return await self._models.host.serve(query.port, stop=query.stop)

    def use(self, request: router.Use, progress: Progress) -> Coroutine[Any, Any, UseReport]:
        """``_punie/use``: begins at once, so that a `withdraw` right behind it finds it; then waits
        for the turns under way and for the load."""
        asked = (request.connection, request.id)
        work = asyncio.create_task(self._models.use(request.params, progress))
        self._uses[asked] = work
        work.add_done_callback(lambda _: self._uses.pop(asked, None))
        return _outcome(work)

    def withdraw(self, connection: int, id: RpcId | None = None) -> None:
        """Whoever asked for a model, by that request or by any, waits no more: a switch that has
        not begun is none; a load goes on."""
        for (number, request), work in self._uses.items():
            if number == connection and id in (None, request):
                work.cancel()


async def _outcome(work: asyncio.Task[UseReport]) -> UseReport:
    try:
        return await work
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) and task.cancelling():
            raise  # the daemon ends
        raise PunieError(Cancelled(message="nobody waits for the model any more")) from None


def _no_progress(text: str, done: int, total: int) -> None:
    """A request that is no prompt has nowhere to show it."""


async def _real_path(cwd: str | None) -> str | None:
    # Not `resolve_root`: a folder that is gone still has its sessions.
    return None if cwd is None else await asyncio.to_thread(roots.real_path, cwd)


def _session_info(summary: ops.SessionSummary) -> dict[str, str]:
    at = datetime.datetime.fromtimestamp(summary.updated_at, datetime.UTC)
    info = {
        "sessionId": summary.id,
        "cwd": summary.root,
        "updatedAt": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return info | ({"title": summary.title} if summary.title else {})


def _next_cursor(last: ops.SessionSummary) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((last.updated_at, last.id))).decode()


def _cursor(text: str | None) -> tuple[float, str] | None:
    if text is None:
        return None
    try:
        raw = base64.urlsafe_b64decode(text)
        return msgspec.json.decode(raw, type=tuple[float, str])
    except ValueError, msgspec.MsgspecError:
        raise PunieError(InvalidRequest(message=f"unknown cursor {text[:80]!r}")) from None
