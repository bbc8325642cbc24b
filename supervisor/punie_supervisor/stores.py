"""What workers ask to be stored: each is answered with `Stored` once it is durable, in order."""

import asyncio
from typing import assert_never

from punie_protocol.messages import to_worker
from punie_protocol.messages.to_supervisor import (
    EffectFinished,
    EffectStarted,
    StoreDelta,
    StoreGrant,
    StoreTrust,
)
from punie_supervisor import journal_ops as ops
from punie_supervisor import journal_projects as projects
from punie_supervisor.journal import Journal, fault_of
from punie_supervisor.registry import Registry
from punie_supervisor.turn import Pending
from punie_supervisor.worker import Worker

type Store = StoreDelta | StoreGrant | StoreTrust | EffectStarted | EffectFinished


class Stores:
    """Puts workers' requests into the journal. The caller has checked that the session or the
    project is open in that worker."""

    def __init__(self, journal: Journal, registry: Registry) -> None:
        self._journal = journal
        self._registry = registry

    async def store(self, worker: Worker[Pending], message: Store) -> None:
        """Submit it; waits only while the journal is behind. The answer comes later."""
        stored = await self._submit(message)

        def answer(stored: asyncio.Future[None]) -> None:
            fault = fault_of(stored)
            if fault is None and isinstance(message, StoreTrust):
                self._now_trusted(message)
            worker.send_if_alive(to_worker.Stored(request_id=message.request_id, error=fault))

        stored.add_done_callback(answer)

    async def _submit(self, message: Store) -> asyncio.Future[None]:
        submit = self._journal.submit
        match message:
            case StoreDelta(session_id=session, prompt_id=prompt, ordinal=ordinal):
                return await submit(ops.store_delta, session, ordinal, prompt, message.data)
            case StoreGrant(session_id=session, grant=grant):
                return await submit(ops.store_grant, session, grant)
            case StoreTrust(project_id=project, digest=digest):
                return await submit(projects.set_trust, project, digest)
            case EffectStarted(effect_id=effect, session_id=session, prompt_id=prompt):
                step = (message.ordinal, message.tool, message.arguments)
                return await submit(ops.start_effect, effect, session, prompt, *step)
            case EffectFinished(effect_id=effect, session_id=session):
                return await submit(ops.finish_effect, effect, session, message.ok, message.summary)
            case _:
                assert_never(message)

    def _now_trusted(self, message: StoreTrust) -> None:
        if project := self._registry.known(message.project_id):
            project.trusted = message.digest
