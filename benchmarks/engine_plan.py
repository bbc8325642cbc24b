"""What `benchmarks.engine` measures, and how much of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from benchmarks import engine_workloads as workloads
from benchmarks.engine_client import Server

type Work = Callable[[Server, str], Awaitable[workloads.Sample]]
"""Asks a server for texts of a seed."""

NAMES: Final = (
    "throughput",
    "join",
    "gap",
    "scaling",
    "fairness",
    "cached",
    "moe",
    "embedded",
    "fuzz",
    "speculation",
    "drafts",
    "server_draft",
    "toolcalls",
    "quantized",
)
FEWER: Final = {"fairness": 2, "moe": 3, "embedded": 3, "server_draft": 2, "drafts": 1}
"""Workloads that get no more rounds than that."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: `requests` of each client, `joins` a round, `fair_s` seconds, `fuzz`
    requests, `edits` rounds of speculation."""

    rounds: int
    requests: int
    joins: int
    fair_s: float
    fuzz: int
    edits: int
    lengths: workloads.Lengths = field(default_factory=workloads.Lengths)


FULL: Final = Size(rounds=5, requests=3, joins=12, fair_s=25.0, fuzz=10_000, edits=2)
DRAFT_K: Final = (0, 2, 3, 5)
"""Tokens of a draft that are tried."""
SERVER_DRAFT_K: Final = 3
"""Of both servers, and the default of ``mlx_lm.server``."""
QUICK: Final = Size(
    rounds=1,
    requests=1,
    joins=6,
    fair_s=10.0,
    fuzz=300,
    edits=1,
    lengths=workloads.Lengths(conversations=4, turns=3, answer=12),
)


def dense(size: Size) -> dict[str, Work]:
    """Return what is asked of the dense model: where the promises are."""
    decoding = partial(workloads.decoding, prompt=32, answer=96)
    return streams("throughput/", size) | {
        "join": partial(workloads.join, streams=4, samples=size.joins, prompt=64),
        "gap": partial(workloads.gap, streams=4, prompt=2_000),
        "scaling/1": partial(decoding, clients=1),
        "scaling/16": partial(decoding, clients=16),
        "fairness": partial(
            workloads.fairness, others=3, greedy=8, seconds=size.fair_s, answer=128
        ),
    }


def streams(prefix: str, size: Size) -> dict[str, Work]:
    """Return 1 and 8 clients with prompts that no cache has."""
    work = partial(workloads.throughput, requests=size.requests, prompt=256, answer=128)
    return {f"{prefix}{clients}": partial(work, clients=clients) for clients in (1, 8)}


def embedded() -> dict[str, Work]:
    """Return the same of a model that ends its answers when it likes."""
    work = partial(workloads.throughput, requests=4, prompt=48, answer=128)
    return {f"embedded/{clients}": partial(work, clients=clients) for clients in (1, 8)}


def drafted() -> dict[str, Work]:
    """Return what is asked of models with a draft model beside them."""
    work = partial(workloads.throughput, clients=8, requests=1, prompt=64, answer=96)
    return {"server_draft/8": work}


async def warm_up(server: Server, seed: str) -> workloads.Sample:
    """Compute every shape once that a workload has, for kernels are compiled at first use."""
    await workloads.throughput(server, seed, clients=1, requests=1, prompt=64, answer=8)
    return await workloads.throughput(server, seed, clients=8, requests=1, prompt=64, answer=24)
