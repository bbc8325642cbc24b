"""One open project: its root, its interpreter, its tools."""

import asyncio
import time
from pathlib import Path
from typing import Final, Self

from punie_protocol.errors import NotFound, PunieError, TimedOut
from punie_protocol.messages.common import HalfStatus, Isolation
from punie_protocol.messages.to_supervisor import HalfQuarantined, ProgramsRunning
from punie_protocol.messages.to_worker import OpenProject
from punie_workers.grounds import Grounds
from punie_workers.halves import Halves
from punie_workers.launching import Premises
from punie_workers.project_settings import ProjectSettings
from punie_workers.project_tools import ProjectTools
from punie_workers.sandbox import protected

LOOK_TIMEOUT: Final = 10.0
"""Seconds that the disk may take to tell whether the root is a folder."""


class Project:
    """Owns the project half until `close`. `unconfined`: the user lets its commands run where there
    is no sandbox."""

    def __init__(self, wanted: OpenProject, halves: Halves, grounds: Grounds) -> None:
        self.project_id = wanted.project_id
        self.root = wanted.root
        self.client_id = wanted.client_id
        self.isolation: Isolation = wanted.isolation
        self.name = Path(wanted.root).name
        self.tools = ProjectTools(wanted.root, halves, self._premises(grounds))
        self.settings = ProjectSettings(halves, self.name, wanted.trusted)
        self.unconfined = wanted.unconfined
        self.activate_ms = 0.0
        self._ledger = grounds.ledger
        self._halves = halves

    @classmethod
    async def open(cls, wanted: OpenProject, grounds: Grounds) -> Self:
        """Start the interpreter. Raises `PunieError` when the root is no folder or it fails."""
        started = time.perf_counter()
        await _check_root(wanted.root)

        def hung(operation: str, seconds: float) -> None:
            id = wanted.project_id
            grounds.tell(HalfQuarantined(project_id=id, operation=operation, seconds=seconds))

        crumb = grounds.crumbs.crumb(wanted.slot)
        halves = Halves(
            wanted.root, grounds.abandoned, lambda root: grounds.make_half(root, crumb), hung
        )
        try:
            await halves.start()
        except BaseException:
            halves.stop()
            raise
        project = cls(wanted, halves, grounds)
        project.activate_ms = (time.perf_counter() - started) * 1000
        return project

    def _premises(self, grounds: Grounds) -> Premises:
        def changed(count: int) -> None:
            grounds.tell(ProgramsRunning(project_id=self.project_id, count=count))

        return Premises(
            settings=grounds.sandbox,
            hidden=grounds.hidden,
            unconfined=lambda: self.unconfined,
            on_change=changed,
            limits=grounds.limits,
        )

    @property
    def status(self) -> HalfStatus:
        """What its tools have done in the project half."""
        return self._halves.status(self.project_id)

    async def trust(self, digest: str) -> None:
        """The user trusts the project's own settings as they are: make it durable, then so.
        Raises `PunieError`."""
        await self._ledger.trust(self.project_id, digest)
        self.settings.trusted = digest

    def close(self) -> None:
        """End the interpreter and the watching; does not wait."""
        self.tools.close()
        self._halves.stop()


def _tidied(root: str) -> bool:
    """Return whether the root is a folder; without placeholders that a killed worker left then."""
    if not Path(root).is_dir():
        return False
    protected.tidy(root)
    return True


async def _check_root(root: str) -> None:
    """Raise `PunieError` when the root is no folder, or the disk does not say in time."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            is_folder = await asyncio.to_thread(_tidied, root)
    except TimeoutError:
        message = f"the disk of the project folder {root} did not answer within {LOOK_TIMEOUT:g} s"
        raise PunieError(TimedOut(message=message, limit_s=LOOK_TIMEOUT)) from None
    if not is_folder:
        message = f"the project folder {root} does not exist"
        raise PunieError(NotFound(message=message, what="project"))
