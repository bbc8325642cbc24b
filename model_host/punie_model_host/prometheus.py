"""The engine's status in Prometheus' text format, and the list of what is in it. Pure.

Names follow prometheus.io/docs/practices/naming: base units, ``_total`` for counters.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import exposition as formats
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from punie_protocol.engine import ClientUsage, DraftCounts, EngineStatus, Histogram

CONTENT_TYPE: Final = formats.CONTENT_TYPE_PLAIN_0_0_4
"""Of what `exposition` returns."""
PREFIX: Final = "punie_engine_"

type Samples = Iterable[tuple[tuple[str, ...], float]]
"""The values of the labels, in their order, and the value."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `name` is what a query uses; the series of a histogram add ``_bucket``,
    ``_sum`` and ``_count``. `metric` returns it for a status and the model's name."""

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...]
    metric: Callable[[EngineStatus, str], Metric]


def exposition(status: EngineStatus, model: str) -> bytes:
    """Return the scrape of `status`, as `CONTENT_TYPE`; `model` is the name of the one that
    answers, empty while none does."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Status(status, model))
    return formats.generate_latest(registry)


class _Status(Collector):
    """One status, to be collected once."""

    def __init__(self, status: EngineStatus, model: str) -> None:
        self._status, self._model = status, model

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            yield family.metric(self._status, self._model)


def _counter(
    stem: str, unit: str, help: str, read: Callable[[EngineStatus], Samples], *labels: str
) -> Family:
    def metric(status: EngineStatus, _model: str) -> Metric:
        return _filled(CounterMetricFamily(PREFIX + stem, help, labels=labels), read(status))

    return Family(f"{PREFIX}{stem}_total", "counter", unit, help, labels, metric)


def _gauge(
    stem: str, unit: str, help: str, read: Callable[[EngineStatus], Samples], *labels: str
) -> Family:
    def metric(status: EngineStatus, _model: str) -> Metric:
        return _filled(GaugeMetricFamily(PREFIX + stem, help, labels=labels), read(status))

    return Family(PREFIX + stem, "gauge", unit, help, labels, metric)


def _histogram(
    stem: str, unit: str, help: str, read: Callable[[EngineStatus], Histogram | None]
) -> Family:
    def metric(status: EngineStatus, _model: str) -> Metric:
        family = HistogramMetricFamily(PREFIX + stem, help)
        if (found := read(status)) is not None:
            family.add_metric((), _buckets(found), found.sum)
        return family

    return Family(PREFIX + stem, "histogram", unit, help, (), metric)


def _model() -> Family:
    stem, help = "model_info", "1 with the name of the model that answers; nothing while none does."

    def metric(_status: EngineStatus, model: str) -> Metric:
        samples: Samples = [((model,), 1)] if model else []
        return _filled(GaugeMetricFamily(PREFIX + stem, help, labels=("model",)), samples)

    return Family(PREFIX + stem, "gauge", "", help, ("model",), metric)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, samples: Samples) -> Metric:
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _buckets(found: Histogram) -> list[tuple[str, float]]:
    """Return the upper bounds with how many values are at most each, the last one without end."""
    bounds = [*map(floatToGoString, found.bounds), "+Inf"]
    return list(zip(bounds, accumulate(found.counts), strict=True))


def _one(value: float) -> Samples:
    yield (), value


def _by(values: dict[str, int]) -> Samples:
    return (((label,), value) for label, value in values.items())


def _clients(read: Callable[[ClientUsage], float]) -> Callable[[EngineStatus], Samples]:
    return lambda status: (((client.client_id,), read(client)) for client in status.clients)


def _drafts(read: Callable[[DraftCounts], float]) -> Callable[[EngineStatus], Samples]:
    return lambda status: (((source,), read(counts)) for source, counts in status.drafts.items())


def _active(status: EngineStatus) -> Samples:
    return _by(
        {"queued": status.queued, "prefilling": status.prefilling, "running": status.running}
    )


def _active_of_clients(status: EngineStatus) -> Samples:
    for client in status.clients:
        yield (client.client_id, "queued"), client.queued
        yield (client.client_id, "running"), client.running


def _kv(status: EngineStatus) -> Samples:
    kv = status.kv
    return _by({"running": kv.running, "reserved": kv.reserved, "cache": kv.cache})


FAMILIES: Final = (
    _model(),
    _gauge("active_requests", "requests", "Requests under way, by state.", _active, "state"),
    _counter(
        "requests", "requests", "Requests that ended, by how.", lambda s: _by(s.requests), "end"
    ),
    _counter(
        "rejections",
        "requests",
        "Requests refused, by the error's kind.",
        lambda s: _by(s.rejected),
        "error",
    ),
    _counter("steps", "steps", "Steps of the engine.", lambda s: _one(s.steps)),
    _gauge("batch_size", "rows", "Requests decoded in the last step.", lambda s: _one(s.batch)),
    _histogram(
        "step_rows",
        "rows",
        "Requests decoded in a step, over steps that decoded any.",
        lambda s: s.batch_rows,
    ),
    _counter(
        "input_tokens",
        "tokens",
        "Prompt tokens of requests that ended.",
        lambda s: _one(s.input_tokens),
    ),
    _counter(
        "cached_tokens",
        "tokens",
        "Those of them that were in the prefix cache.",
        lambda s: _one(s.cached_tokens),
    ),
    _counter(
        "output_tokens",
        "tokens",
        "Tokens generated by requests that ended.",
        lambda s: _one(s.output_tokens),
    ),
    _gauge(
        "cached_ratio",
        "ratio",
        "Cached tokens of all input tokens.",
        lambda s: _one(s.cached_share),
    ),
    _gauge(
        "prefill_tokens_per_second",
        "tokens/s",
        "Prompt tokens computed, over the last ten seconds with work.",
        lambda s: _one(s.prefill_tok_s),
    ),
    _gauge(
        "decode_tokens_per_second",
        "tokens/s",
        "Tokens generated by all requests together, over the last ten seconds with work.",
        lambda s: _one(s.decode_tok_s),
    ),
    _histogram(
        "time_to_first_token_seconds",
        "s",
        "From a request's arrival to its first token.",
        lambda s: s.ttft_s,
    ),
    _histogram(
        "inter_token_seconds", "s", "From a token of a request to its next.", lambda s: s.gap_s
    ),
    _gauge(
        "kv_bytes",
        "bytes",
        "Keys and values: running requests' own, reserved for their growth, the prefix cache's.",
        _kv,
        "part",
    ),
    _gauge(
        "kv_budget_bytes",
        "bytes",
        "What all parts of the keys and values may be together.",
        lambda s: _one(s.kv.budget),
    ),
    _gauge("kv_disk_bytes", "bytes", "The prefix cache on disk.", lambda s: _one(s.kv.disk)),
    _counter(
        "draft_proposed_tokens",
        "tokens",
        "Draft tokens proposed, by source.",
        _drafts(lambda c: c.proposed),
        "source",
    ),
    _counter(
        "draft_accepted_tokens",
        "tokens",
        "Draft tokens that were the model's own choice.",
        _drafts(lambda c: c.accepted),
        "source",
    ),
    _counter(
        "draft_emitted_tokens",
        "tokens",
        "Tokens out of forwards with a proposal: one more than was accepted, each time.",
        _drafts(lambda c: c.emitted),
        "source",
    ),
    _gauge(
        "client_active_requests",
        "requests",
        "Requests under way of a client, by state.",
        _active_of_clients,
        "client",
        "state",
    ),
    _counter(
        "client_requests",
        "requests",
        "Requests that a client made.",
        _clients(lambda c: c.requests),
        "client",
    ),
    _counter(
        "client_rejections",
        "requests",
        "Those of them that were refused.",
        _clients(lambda c: c.rejected),
        "client",
    ),
    _counter(
        "client_input_tokens",
        "tokens",
        "Prompt tokens of a client's requests that ended.",
        _clients(lambda c: c.input_tokens),
        "client",
    ),
    _counter(
        "client_cached_tokens",
        "tokens",
        "Those of them that were in the prefix cache.",
        _clients(lambda c: c.cached_tokens),
        "client",
    ),
    _counter(
        "client_output_tokens",
        "tokens",
        "Tokens generated by a client's requests that ended.",
        _clients(lambda c: c.output_tokens),
        "client",
    ),
)
"""Every metric, in the order of a scrape."""
