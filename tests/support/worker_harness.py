"""The public test kit's client, with shortcuts of the tests here."""

import subprocess

from punie_protocol.errors import WireError
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_supervisor import ToSupervisor
from punie_protocol.testing.fake_client import FakeClient
from punie_protocol.testing.turns import Turn
from punie_protocol.testing.waiting import PATIENCE

__all__ = ["PATIENCE", "Turn", "WorkerHarness"]


class WorkerHarness(FakeClient):
    """``async with WorkerHarness(model_socket) as worker``; the process is gone after it."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The worker's process."""
        return self.worker.process

    @property
    def link(self) -> FrameLink[ToSupervisor]:
        """The worker's control link."""
        return self.worker.link

    @property
    def deltas(self) -> dict[str, list[bytes]]:
        """What was stored of each session."""
        return {id: record.deltas for id, record in self.journal.sessions.items()}

    @property
    def store_error(self) -> WireError | None:
        """What every request to store something is answered with."""
        return self._store_error

    @store_error.setter
    def store_error(self, error: WireError | None) -> None:
        self._store_error = error
        self.journal.refuse = lambda _: error

    _store_error: WireError | None = None
