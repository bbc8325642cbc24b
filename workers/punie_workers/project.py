"""One open project: its root, its interpreter, its tools."""

import asyncio
import os
import time
from pathlib import Path
from typing import Self

from punie_protocol.errors import NotFound, PunieError
from punie_protocol.messages.common import Isolation
from punie_protocol.messages.to_worker import OpenProject
from punie_workers.halves import Abandoned, Halves
from punie_workers.ledger import Ledger
from punie_workers.project_settings import ProjectSettings
from punie_workers.project_tools import ProjectTools


class Project:
    """Owns the project half until `close`."""

    def __init__(self, wanted: OpenProject, halves: Halves, ledger: Ledger) -> None:
        self.project_id = wanted.project_id
        self.root = wanted.root
        self.client_id = wanted.client_id
        self.isolation: Isolation = wanted.isolation
        self.name = Path(wanted.root).name
        self.tools = ProjectTools(wanted.root, halves)
        self.settings = ProjectSettings(halves, self.name, wanted.trusted)
        self.activate_ms = 0.0
        self._ledger = ledger
        self._halves = halves

    @classmethod
    async def open(cls, wanted: OpenProject, abandoned: Abandoned, ledger: Ledger) -> Self:
        """Start the interpreter. Raises `PunieError` when the root is no folder or it fails."""
        started = time.perf_counter()
        if not await asyncio.to_thread(os.path.isdir, wanted.root):
            message = f"the project folder {wanted.root} does not exist"
            raise PunieError(NotFound(message=message, what="project"))
        halves = Halves(wanted.root, abandoned)
        try:
            await halves.start()
        except BaseException:
            halves.stop()
            raise
        project = cls(wanted, halves, ledger)
        project.activate_ms = (time.perf_counter() - started) * 1000
        return project

    async def trust(self, digest: str) -> None:
        """The user trusts the project's own settings as they are: make it durable, then so.
        Raises `PunieError`."""
        await self._ledger.trust(self.project_id, digest)
        self.settings.trusted = digest

    def close(self) -> None:
        """End the interpreter and the watching; does not wait."""
        self.tools.close()
        self._halves.stop()
