"""Whether the engine gets anywhere, which is more than whether a port answers. Pure."""

from enum import StrEnum

import msgspec

from punie_model_host.door.desks import Desk
from punie_model_host.door.limits import STALLED
from punie_protocol.engine import EngineStatus


class Condition(StrEnum):
    """``ok``: tokens progress, or there is nothing to do. ``stalled``: there is work, and nothing
    came of it for `STALLED` seconds. ``loading``: there is no model yet."""

    OK = "ok"
    STALLED = "stalled"
    LOADING = "loading"


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``GET /health``. `quiet_s` are the seconds without progress while there is work, else
    0; requests are counted as in the status report, which may be a second old."""

    status: Condition
    model: str | None
    quiet_s: float
    queued: int
    prefilling: int
    running: int

    @property
    def code(self) -> int:
        """The HTTP status: 200 or 503."""
        return 200 if self.status is Condition.OK else 503


def look(desk: Desk) -> Health:
    """Return the engine's health as of now."""
    engine = desk.status or EngineStatus()
    model = desk.model
    return Health(
        status=_condition(desk),
        model=model.name if model is not None else None,
        quiet_s=round(desk.quiet_s, 3),
        queued=engine.queued,
        prefilling=engine.prefilling,
        running=engine.running,
    )


def _condition(desk: Desk) -> Condition:
    if desk.model is None:
        return Condition.LOADING
    return Condition.STALLED if desk.quiet_s > STALLED else Condition.OK
