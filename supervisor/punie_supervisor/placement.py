"""Who shares which worker process. Pure: projects and events in, worker ids out.

A project at level ``process`` has a worker of its own. Those at level ``interpreter`` share
workers, up to `MAX_SHARING` in each. A project stays where it is until it leaves, its worker is
gone, or that worker drains: one that drains keeps the turns it has, and every turn that begins
later finds its project in another one.
"""

import itertools
from collections import Counter
from typing import Final

import msgspec

from punie_protocol.messages.common import Isolation

MAX_SHARING: Final = 64
"""Projects in one worker: what the end of it interrupts at most."""


class Placed(msgspec.Struct, frozen=True):
    """A worker to be: its id, and the level of the projects in it."""

    worker_id: str
    isolation: Isolation


class Placement:
    """Which worker each project belongs to."""

    def __init__(self) -> None:
        self._of: dict[str, Placed] = {}
        self._draining: dict[str, str] = {}

    def assign(self, project: str, isolation: Isolation) -> Placed:
        """Return the worker for a turn of `project` that begins now."""
        placed = self._of.get(project)
        if placed is None or placed.isolation is not isolation or self._drains(placed):
            placed = self._of[project] = self._choose(project, isolation)
        return placed

    @property
    def projects(self) -> list[str]:
        """Every project that is assigned."""
        return list(self._of)

    def of(self, project: str) -> Placed | None:
        """Return where the project is, if anywhere."""
        return self._of.get(project)

    def sharing(self, worker_id: str) -> list[str]:
        """Return the projects that belong to that worker."""
        return [project for project, placed in self._of.items() if placed.worker_id == worker_id]

    def leave(self, project: str) -> Placed | None:
        """The project belongs nowhere until it is assigned again; return where it was."""
        return self._of.pop(project, None)

    def drain(self, worker_id: str, reason: str) -> bool:
        """No turn begins there any more; return whether that is news."""
        if worker_id in self._draining:
            return False
        self._draining[worker_id] = reason
        return True

    def draining(self, worker_id: str) -> str:
        """Return why a worker drains, or nothing."""
        return self._draining.get(worker_id, "")

    def retired(self, worker_id: str) -> None:
        """The worker is no more, and none of that id will come back by itself."""
        self._draining.pop(worker_id, None)
        for project in self.sharing(worker_id):
            del self._of[project]

    def _drains(self, placed: Placed) -> bool:
        return placed.worker_id in self._draining

    def _choose(self, project: str, isolation: Isolation) -> Placed:
        if isolation is Isolation.PROCESS:
            return Placed(self._name(f"worker-{project}"), isolation)
        sharing = Counter(
            placed.worker_id
            for placed in self._of.values()
            if placed.isolation is Isolation.INTERPRETER and not self._drains(placed)
        )
        room = (id for id, count in sharing.items() if count < MAX_SHARING)
        return Placed(next(room, None) or self._name("worker-shared"), isolation)

    def _name(self, base: str) -> str:
        """Return an id that no worker in use or draining has."""
        used = {placed.worker_id for placed in self._of.values()} | self._draining.keys()
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in used)
