"""What somebody who waits for a model is told. Pure."""

from punie_protocol.engine import EngineStatus
from punie_protocol.messages.to_supervisor import Load, ModelState

_MB = 1024 * 1024
_GB = 1_000_000_000

type Line = tuple[str, int, int]
"""A line for a person, and bytes done of all (0, 0 when not known)."""


def loading(state: ModelState | None, engine: EngineStatus | None) -> Line | None:
    """Return how far a load is; nothing when the host loads none. `engine` is the present one when
    the load is of another model: its requests are waited for before a byte is read."""
    if state is None or state.state is not Load.LOADING:
        return None
    if engine is not None and not state.done_bytes and (left := engine.running + engine.prefilling):
        name = state.model.name if state.model else state.name
        return waiting(left, "request", name), 0, 0
    return _so_far(state), state.done_bytes, state.total_bytes


def waiting(count: int, what: str, model: str) -> str:
    """Return for how many of them somebody waits."""
    return f"waiting for {count} {what}{'' if count == 1 else 's'} on model {model}"


def _so_far(state: ModelState) -> str:
    if not state.total_bytes:
        return f"loading model {state.name}"
    unit, name = (_GB, "GB") if state.total_bytes >= _GB else (_MB, "MB")
    done, total = state.done_bytes / unit, state.total_bytes / unit
    return f"loading model {state.name} {done:.1f}/{total:.1f} {name}"
