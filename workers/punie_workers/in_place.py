"""A project half in this very interpreter: no isolation, nothing to start and nothing to end.

For a process that shall be forked, and so may hold no other interpreter, and for measuring what
the others cost. A call blocks the loop until it has its answer, and no deadline interrupts it.
"""

from punie_workers.crumbs import Crumb, nowhere
from punie_workers.half import Half
from punie_workers.half_calls import Answer, Broken
from punie_workers.interp.entry import Entry


class InPlace(Half):
    """One project's half, called directly."""

    def __init__(self, root: str, crumb: Crumb | None = None) -> None:
        super().__init__(root)
        self._crumb = crumb or nowhere()
        self._entry = Entry()

    def join(self, timeout: float) -> None:
        pass

    def _begin(self) -> None:
        pass

    def _send(self, request: bytes) -> None:
        try:
            answer: Answer = self._entry.handle(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            answer = Broken(f"{type(error).__name__}: {error}")
        self._finish(answer)

    def _end(self) -> None:
        self._entry.close()
