"""The model host's engine: its settings, and what it says of itself.

The settings are ``[engine]`` of the user's config file; they reach the model host as JSON on its
command line. The status is ``model.engine`` of the status report, and ``/metrics`` of the HTTP
door.
"""

import math
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

type Megabytes = Annotated[int, Meta(ge=0, le=10_000_000)]
type Port = Annotated[int, Meta(ge=0, le=65_535)]


class Kernels(StrEnum):
    """Whether the model host has MLX compile fused kernels for the CPU; Metal has its own."""

    AUTO = "auto"
    """After a quiet time, and from then on."""
    ON = "on"
    """At load."""
    OFF = "off"


class Speculation(StrEnum):
    """Where the tokens come from that the model is shown before it has made them. Whatever is
    chosen, the answer is the same; a step whose drafts would cost more than they bring has none."""

    OFF = "off"
    NGRAM = "ngram"
    """From the request's own tokens: an edit repeats what it edits."""
    DRAFT = "draft"
    """From a draft model."""
    AUTO = "auto"
    """From both, if there is a draft model."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[engine]`` of the config file.

    `memory_mb` is for keys and values, those of running requests and the prefix cache's together;
    ``None``: what the machine has, less the weights and a reserve. `disk_mb` bounds the prefix
    cache on disk (0: none), `disk_write_mb_per_hour` what is written to it while idle. `max_batch`
    is how many requests are decoded at once, `step_tokens` the tokens of one step, rows and prompt
    together; ``None``: as the device likes. `openai_port` opens the HTTP door with the daemon; 0
    takes any free port. `cpu_kernels`: fused ones need a C++ compiler.

    `num_draft_tokens` is how many tokens of a row are drafted a step at most, ``None``: as many as
    pay. `draft_model` is a model's name or absolute path, as for the model itself; it has the same
    tokenizer.
    """

    memory_mb: Annotated[int, Meta(ge=16, le=10_000_000)] | None = None
    disk_mb: Megabytes = 4096
    disk_write_mb_per_hour: Megabytes = 4096
    max_batch: Annotated[int, Meta(ge=1, le=256)] = 16
    step_tokens: Annotated[int, Meta(ge=16, le=65_536)] | None = None
    openai_port: Port | None = None
    cpu_kernels: Kernels = Kernels.AUTO
    speculation: Speculation = Speculation.AUTO
    num_draft_tokens: Annotated[int, Meta(ge=1, le=64)] | None = None
    draft_model: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """`counts[i]` values were at most `bounds[i]` and over the bound before; the last count, one
    more than there are bounds, is of those over all. `sum` is of all values, in their unit."""

    bounds: list[float]
    counts: list[int]
    sum: float


def quantile(histogram: Histogram, q: float) -> float:
    """Return about the value that a share `q` (0 to 1) of all values are at most: straight between
    the bounds of its bucket, the first of which begins at 0. Of values over all bounds only the
    last bound is known and returned; of no values NaN. Raises `ValueError` for another `q`."""
    if not 0 <= q <= 1:
        raise ValueError(f"quantile {q} is not in 0 to 1")
    rank, below, low = q * sum(histogram.counts), 0, 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        if count and below + count >= rank:
            return min(bound, low + (bound - low) * (rank - below) / count)
        below, low = below + count, bound
    return low if sum(histogram.counts) else math.nan


class KVStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of keys and values: held by running requests, reserved for what is predicted of them,
    in the prefix cache, the budget of all three, and on disk."""

    running: int = 0
    reserved: int = 0
    cache: int = 0
    budget: int = 0
    disk: int = 0


class ClientUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One client's (project's) part: requests that wait and run now, what all of its requests took
    since the host started."""

    client_id: str
    queued: int = 0
    running: int = 0
    requests: int = 0
    rejected: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class DraftCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one source of drafts: tokens proposed, those that the model's own choice was, and tokens
    that came out of forwards with a proposal (one more than was accepted, each time)."""

    proposed: int = 0
    accepted: int = 0
    emitted: int = 0


class DraftModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The draft model: its name, or why the one that is asked for is not used; both empty if none
    is."""

    name: str = ""
    error: str = ""


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The engine at one moment. Counters are since the host started; rates are tokens a second over
    the last ten seconds in which there was work.

    `queued` requests wait, `prefilling` have a part of their prompt computed, `running` are decoded
    in turn, `batch` were in the last step. `requests` counts ends by how: ``finished``,
    ``cancelled``, ``failed``, ``rejected``. `rejected` counts refusals by the error's kind.
    `cached_share` is of all input tokens. `ttft_s` counts from arrival to the first token,
    `gap_s` from a token of a request to its next. `drafts` counts by
    source, ``ngram`` and ``draft``.
    """

    queued: int = 0
    prefilling: int = 0
    running: int = 0
    batch: int = 0
    steps: int = 0
    requests: dict[str, int] = {}
    rejected: dict[str, int] = {}
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cached_share: float = 0.0
    prefill_tok_s: float = 0.0
    decode_tok_s: float = 0.0
    ttft_s: Histogram | None = None
    gap_s: Histogram | None = None
    batch_rows: Histogram | None = None
    kv: KVStatus = KVStatus()
    drafts: dict[str, DraftCounts] = {}
    draft_model: DraftModelStatus = DraftModelStatus()
    clients: list[ClientUsage] = msgspec.field(default_factory=list[ClientUsage])


class DoorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP door: open at `url` (ends in ``/v1``), with the key that is in `key_file`; or
    closed,
    `url` empty, with the reason if that is a fault."""

    url: str = ""
    key_file: str = ""
    error: str = ""
