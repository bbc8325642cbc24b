"""Which rank of a group this process is: several machines, or several processes of one, that answer
with one model, each with a part of its weights. Pure; MLX is not imported here.

``mlx.launch`` says it in the environment, as MLX's own backends read it there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from punie_protocol.engine import EngineSettings, Kernels, Speculation
from punie_protocol.errors import InvalidRequest, PunieError

_LAUNCH = "start the ranks with mlx.launch, backend ring or jaccl"


class Sharding(StrEnum):
    """How a model is divided among ranks."""

    AUTO = "auto"
    """Tensors if the model can, else layers."""
    TENSOR = "tensor"
    """Every rank has a part of every layer; all work at the same time."""
    PIPELINE = "pipeline"
    """Every rank has some of the layers; one after the other works."""


@dataclass(frozen=True, slots=True)
class Place:
    """This process is `rank` of its group; rank 0 leads, and is reached by all at `leader`, an
    address."""

    rank: int
    leader: str

    @property
    def leads(self) -> bool:
        """Whether it serves the doors and says what is done when."""
        return self.rank == 0


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place, None when it is alone. Raises `PunieError` for an environment
    that says half of it, or files that cannot be read."""
    rank = environment.get("MLX_RANK")
    if rank is None:
        return None
    if not rank.isdecimal():
        raise _wrong(f"MLX_RANK is {rank!r}, no number")
    if coordinator := environment.get("MLX_JACCL_COORDINATOR"):
        return Place(int(rank), _host(coordinator))
    hosts = _hosts(environment.get("MLX_HOSTFILE", ""))
    return Place(int(rank), _host(hosts[0])) if len(hosts) > 1 else None


def _hosts(path: str) -> list[str]:
    """Return the first address of each rank in the ring's file, an empty one if it has one rank."""
    try:
        text = Path(path).read_text().strip()
        ring = msgspec.json.decode(text, type=list[list[str]]) if text else []
        return [addresses[0] for addresses in ring]
    except (OSError, UnicodeError, msgspec.MsgspecError, LookupError) as error:
        reason = f"MLX_RANK is set, but MLX_HOSTFILE ({path or 'not set'}) cannot be used: {error}"
        raise _wrong(reason) from None


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _wrong(reason: str) -> PunieError:
    return PunieError(InvalidRequest(message=f"ranks: {reason}", hint=_LAUNCH))


def for_ranks(settings: EngineSettings) -> EngineSettings:
    """Return the settings less what ranks could not do alike: a draft model, which one of them
    might fail to load, and compiling, which one of them may have no compiler for."""
    changes: dict[str, Any] = {"draft_model": None, "cpu_kernels": Kernels.OFF}
    if settings.speculation in (Speculation.AUTO, Speculation.DRAFT):
        changes["speculation"] = Speculation.NGRAM
    return msgspec.structs.replace(settings, **changes)
