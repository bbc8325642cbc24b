"""What the engine counts of itself, and how Prometheus gets it."""

import bisect
import math
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser

from punie_model_host import metrics
from punie_model_host.metrics import MAX_CLIENTS, OTHER, End, Gauges, Metrics, Tally
from punie_model_host.prometheus import CONTENT_TYPE, FAMILIES, exposition
from punie_protocol.engine import (
    ClientUsage,
    DraftCounts,
    EngineStatus,
    Histogram,
    KVStatus,
    quantile,
)
from punie_protocol.messages.common import Usage
from punie_supervisor.cli import output

USAGE = Usage(input_tokens=100, cached_tokens=80, output_tokens=7)
ROOT = Path(__file__).parents[2]


def client(status: EngineStatus, id: str) -> ClientUsage:
    [found] = [client for client in status.clients if client.client_id == id]
    return found


def work(
    counted: Metrics, now: float, seconds: float, *, rows: int = 0, prefilled: int = 0
) -> None:
    counted.step(now, seconds=seconds, rows=rows, decoded=rows, prefilled=prefilled)


def busy() -> EngineStatus:
    """A status in which nothing is 0."""
    counted = Metrics()
    for who in ("shop", "blog"):
        counted.arrived(who)
        counted.first_token(who, 0.04)
        for how in (End.FINISHED, End.CANCELLED, End.FAILED):
            counted.ended(who, how, USAGE)
        counted.rejected(who, "overloaded")
    for _ in range(3):
        counted.gap(0.012)
    work(counted, 1.0, 0.5, rows=2, prefilled=100)
    for _ in range(2):
        counted.drafted("ngram", DraftCounts(proposed=4, accepted=3, emitted=4))
    kv = KVStatus(running=1, reserved=2, cache=3, budget=10, disk=4)
    per_client = {"shop": (1, 2), "blog": (3, 4)}
    return counted.snapshot(
        Gauges(queued=4, prefilling=1, running=5, batch=2, kv=kv, per_client=per_client)
    )


# counting


def test_a_new_engine_has_counted_nothing() -> None:
    status = Metrics().snapshot(Gauges())
    assert (status.steps, status.clients, status.rejected) == (0, [], {})
    assert status.requests == {"finished": 0, "cancelled": 0, "failed": 0, "rejected": 0}
    assert (status.cached_share, status.prefill_tok_s, status.decode_tok_s) == (0, 0, 0)
    assert status.ttft_s is not None
    assert sum(status.ttft_s.counts) == 0


def test_requests_are_counted_by_end_and_refusals_by_kind() -> None:
    status = busy()
    assert status.requests == {"finished": 2, "cancelled": 2, "failed": 2, "rejected": 2}
    assert status.rejected == {"overloaded": 2}
    assert (status.input_tokens, status.cached_tokens, status.output_tokens) == (600, 480, 42)
    assert status.cached_share == 0.8
    assert status.drafts == {"ngram": DraftCounts(proposed=8, accepted=6, emitted=8)}


def test_each_client_has_what_its_requests_took() -> None:
    assert client(busy(), "shop") == ClientUsage(
        client_id="shop",
        queued=1,
        running=2,
        requests=1,
        rejected=1,
        input_tokens=300,
        cached_tokens=240,
        output_tokens=21,
    )


def test_a_snapshot_does_not_change_any_more() -> None:
    counted = Metrics()
    before = counted.snapshot(Gauges())
    told = msgspec.json.encode(before)
    counted.gap(1.0)
    counted.rejected("a", "too_large")
    assert msgspec.json.encode(before) == told
    assert msgspec.json.decode(told, type=EngineStatus) == before


def test_the_rows_of_a_step_that_decoded_nothing_are_not_counted() -> None:
    counted = Metrics()
    work(counted, 0, 0.1, prefilled=64)
    work(counted, 0, 0.1, rows=3)
    status = counted.snapshot(Gauges())
    assert status.steps == 2
    assert status.batch_rows == Histogram(
        bounds=[1, 2, 4, 8, 16, 32, 64], counts=[0, 0, 1, 0, 0, 0, 0, 0], sum=3
    )


# rates


def test_the_last_tokens_come_out_of_a_step_that_begins_none() -> None:
    counted = Metrics()
    counted.step(0, seconds=0.1, rows=2, decoded=0, prefilled=0)
    counted.step(0.5, seconds=0.5, rows=0, decoded=2, prefilled=0)
    status = counted.snapshot(Gauges())
    assert status.decode_tok_s == pytest.approx(4)
    assert status.batch_rows is not None
    assert sum(status.batch_rows.counts) == 1


def test_a_rate_is_of_the_steps_that_did_that_kind_of_work() -> None:
    counted = Metrics()
    work(counted, 0.5, 0.5, prefilled=500)
    work(counted, 1.0, 0.5, prefilled=500, rows=4)
    work(counted, 1.1, 0.1, rows=4)
    status = counted.snapshot(Gauges())
    assert status.prefill_tok_s == pytest.approx(1000)
    assert status.decode_tok_s == pytest.approx(8 / 0.6)


def test_a_rate_outlives_a_rest_and_forgets_what_is_older_than_its_window() -> None:
    counted = Metrics()
    work(counted, 0.0, 1.0, rows=1)
    work(counted, 100_000.0, 1.0, rows=9)
    assert counted.snapshot(Gauges()).decode_tok_s == pytest.approx(5)
    for second in range(1, metrics.WINDOW):
        work(counted, 100_000.0 + second, 1.0, rows=9)
    assert counted.snapshot(Gauges()).decode_tok_s == pytest.approx(9)


# clients


def test_clients_beyond_the_bound_are_one() -> None:
    counted = Metrics()
    for n in range(MAX_CLIENTS + 10):
        counted.arrived(f"c{n}")
        counted.ended(f"c{n}", End.FINISHED, USAGE)
    status = counted.snapshot(Gauges(per_client={"c0": (1, 0), "c9": (1, 2), "c100": (0, 1)}))
    assert len(status.clients) == MAX_CLIENTS + 1
    assert status.clients[0].client_id == f"c{MAX_CLIENTS + 9}"
    other = status.clients[-1]
    assert (other.client_id, other.requests, other.input_tokens) == (OTHER, 10, 1000)
    assert (other.queued, other.running) == (2, 2)
    assert client(status, "c100").running == 1


def test_the_clients_that_were_active_longest_ago_are_folded() -> None:
    counted = Metrics()
    for n in range(MAX_CLIENTS):
        counted.arrived(f"c{n}")
    counted.rejected("c0", "overloaded")
    counted.arrived("new")
    status = counted.snapshot(Gauges())
    assert client(status, "c0").rejected == 1
    assert "c1" not in {client.client_id for client in status.clients}


def test_nothing_is_lost_or_twice_when_clients_come_and_go() -> None:
    chance, counted = random.Random(5), Metrics()
    for _ in range(5000):
        who = f"c{int(chance.expovariate(0.005))}"
        counted.arrived(who)
        counted.ended(who, End.FINISHED, USAGE)
    status = counted.snapshot(Gauges())
    ids = [client.client_id for client in status.clients]
    assert len(ids) == len(set(ids)) == MAX_CLIENTS + 1
    assert sum(client.requests for client in status.clients) == 5000
    assert sum(client.output_tokens for client in status.clients) == status.output_tokens


def test_a_client_with_the_name_of_all_others_is_one_of_them() -> None:
    counted = Metrics()
    for n in range(MAX_CLIENTS + 1):
        counted.arrived(f"c{n}")
    counted.arrived(OTHER)
    status = counted.snapshot(Gauges(per_client={OTHER: (1, 1)}))
    assert client(status, OTHER).requests == 2
    assert client(status, OTHER).running == 1


def test_a_report_is_small_whatever_clients_are_called() -> None:
    counted = Metrics()
    for n in range(2 * MAX_CLIENTS):
        counted.arrived(f"{n}" + "ü" * 100_000)
        counted.arrived(f"{n}".zfill(metrics.MAX_NAME))
    status = counted.snapshot(Gauges(per_client={str("x" * 100_000): (1, 1)}))
    assert len(msgspec.msgpack.encode(status)) < 100_000
    assert len(status.clients) == MAX_CLIENTS + 1
    assert client(status, OTHER).requests == 3 * MAX_CLIENTS
    assert client(status, OTHER).running == 1


# histograms


@pytest.mark.parametrize(
    ("value", "bucket"), [(0.0, 0), (1.0, 0), (1.1, 1), (2.0, 1), (4.0, 2), (4.1, 3), (99.0, 3)]
)
def test_a_value_on_a_bound_is_below_it(value: float, bucket: int) -> None:
    tally = Tally((1.0, 2.0, 4.0))
    tally.add(value)
    found = tally.histogram()
    assert found.counts == [int(n == bucket) for n in range(4)]
    assert found.sum == value


@pytest.mark.parametrize("bounds", [metrics.TTFT_BOUNDS, metrics.GAP_BOUNDS, metrics.BATCH_BOUNDS])
def test_bounds_ascend_and_outlive_rounding(bounds: tuple[float, ...]) -> None:
    assert output.rounded(list(bounds)) == list(bounds)
    assert all(low < high for low, high in pairwise(bounds))


def test_quantiles_of_even_values() -> None:
    found = Histogram(bounds=[10.0, 20.0, 40.0], counts=[10, 10, 0, 0], sum=0)
    assert [quantile(found, q) for q in (0, 0.25, 0.5, 0.75, 1)] == [0, 5, 10, 15, 20]


def test_a_quantile_over_all_bounds_is_the_last_one() -> None:
    found = Histogram(bounds=[10.0, 20.0], counts=[1, 0, 9], sum=0)
    assert quantile(found, 0.5) == 20


def test_there_is_no_quantile_of_nothing() -> None:
    assert math.isnan(quantile(Tally((1.0,)).histogram(), 0.5))


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_is_a_share(q: float) -> None:
    with pytest.raises(ValueError, match="not in 0 to 1"):
        quantile(Tally((1.0,)).histogram(), q)


@given(
    st.lists(st.floats(0, 130), min_size=1, max_size=200),
    st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_a_quantile_is_in_the_bucket_of_the_true_one(
    values: list[float], shares: list[float]
) -> None:
    bounds = metrics.TTFT_BOUNDS
    tally = Tally(bounds)
    for value in values:
        tally.add(value)
    found = [quantile(tally.histogram(), q) for q in sorted(shares)]
    assert found == sorted(found)
    for q, it in zip(sorted(shares), found, strict=True):
        true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
        bucket = bisect.bisect_left(bounds, true)
        low = bounds[bucket - 1] if bucket else 0.0
        high = bounds[min(bucket, len(bounds) - 1)]
        assert low <= it <= high or math.isclose(it, low) or math.isclose(it, high)


# Prometheus


def samples(status: EngineStatus, model: str = "m") -> dict[str, dict[frozenset[str], float]]:
    """Return the value by name and by labels of all that Prometheus' own parser reads."""
    found: dict[str, dict[frozenset[str], float]] = {}
    text = exposition(status, model).decode()
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset(f"{key}={value}" for key, value in sample.labels.items())
            series = found.setdefault(sample.name, {})
            assert labels not in series, f"{sample.name} {labels} is there twice"
            series[labels] = sample.value
    return found


def label(*pairs: str) -> frozenset[str]:
    return frozenset(pairs)


def test_prometheus_reads_what_the_status_says() -> None:
    found = samples(busy())
    assert found["punie_engine_model_info"] == {label("model=m"): 1}
    assert found["punie_engine_requests_total"][label("end=cancelled")] == 2
    assert found["punie_engine_rejections_total"] == {label("error=overloaded"): 2}
    assert found["punie_engine_input_tokens_total"] == {label(): 600}
    assert found["punie_engine_cached_ratio"] == {label(): 0.8}
    assert found["punie_engine_decode_tokens_per_second"] == {label(): 4}
    assert found["punie_engine_prefill_tokens_per_second"] == {label(): 200}
    assert found["punie_engine_kv_bytes"] == {
        label("part=running"): 1,
        label("part=reserved"): 2,
        label("part=cache"): 3,
    }
    running = label("client=blog", "state=running")
    assert found["punie_engine_client_active_requests"][running] == 4
    assert found["punie_engine_client_output_tokens_total"][label("client=shop")] == 21


def test_every_metric_has_samples_of_its_kind() -> None:
    text = exposition(busy(), "m").decode()
    families = [*parser.text_string_to_metric_families(text)]
    assert len(families) == len(FAMILIES)
    for family, told in zip(families, FAMILIES, strict=True):
        assert family.samples, told.name
        assert family.type == told.kind
        assert told.name == family.name + ("_total" if told.kind == "counter" else "")
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == set(told.labels)
        assert all(sample.value for sample in family.samples if told.kind != "histogram")


def histograms(status: EngineStatus) -> Iterator[tuple[str, Histogram | None]]:
    yield "punie_engine_time_to_first_token_seconds", status.ttft_s
    yield "punie_engine_inter_token_seconds", status.gap_s
    yield "punie_engine_step_rows", status.batch_rows


def test_buckets_are_cumulative() -> None:
    status = busy()
    found = samples(status)
    for name, told in histograms(status):
        assert told is not None
        buckets = found[f"{name}_bucket"]
        values = [buckets[label(f"le={bound}")] for bound in map(float, told.bounds)]
        values.append(buckets[label("le=+Inf")])
        assert values == sorted(values)
        assert [*values[:1], *(b - a for a, b in pairwise(values))] == told.counts
        assert values[-1] == found[f"{name}_count"][label()] > 0
        assert found[f"{name}_sum"] == {label(): pytest.approx(told.sum)}


def test_a_status_without_anything_can_be_scraped() -> None:
    found = samples(EngineStatus(), "")
    assert "punie_engine_model_info" not in found
    assert "punie_engine_step_rows_bucket" not in found
    assert found["punie_engine_steps_total"] == {label(): 0}


@pytest.mark.parametrize("evil", ['a"} 1\npunie_engine_steps_total 9', "back\\slash", "ü\u2028"])
def test_a_name_cannot_forge_a_sample(evil: str) -> None:
    counted = Metrics()
    counted.arrived(evil)
    found = samples(counted.snapshot(Gauges()), evil)
    assert found["punie_engine_client_requests_total"] == {label(f"client={evil}"): 1}
    assert found["punie_engine_model_info"] == {label(f"model={evil}"): 1}
    assert found["punie_engine_steps_total"] == {label(): 0}


def test_as_many_clients_as_can_be() -> None:
    counted = Metrics()
    for n in range(2 * MAX_CLIENTS):
        counted.arrived(f"c{n}")
    found = samples(counted.snapshot(Gauges()))
    assert len(found["punie_engine_client_requests_total"]) == MAX_CLIENTS + 1


def test_the_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    assert all(f"| `{family.name}` | {family.kind} |" in page for family in FAMILIES)
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
