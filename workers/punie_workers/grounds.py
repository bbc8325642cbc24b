"""What a worker process gives each of its projects."""

from collections.abc import Callable

import msgspec

from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_protocol.messages.to_supervisor import HalfQuarantined, ProgramsRunning
from punie_workers.crumbs import Crumb, Crumbs
from punie_workers.half import Half
from punie_workers.halves import Abandoned
from punie_workers.ledger import Ledger

type MakeHalf = Callable[[str, Crumb], Half]
"""Makes the half of a root; the crumb says when it is inside a call."""


class Grounds(msgspec.Struct, frozen=True):
    """The journal, the interpreters lost so far, the breadcrumb file, what programs may see, where
    project halves run, the way to tell the supervisor, and the process's own limits, if it has any;
    `tell` does not wait."""

    ledger: Ledger
    abandoned: Abandoned
    crumbs: Crumbs
    sandbox: SandboxSettings
    hidden: tuple[str, ...]
    make_half: MakeHalf
    tell: Callable[[HalfQuarantined | ProgramsRunning], None]
    limits: WorkerLimits | None = None
