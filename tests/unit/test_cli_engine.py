"""The model host's engine as a person reads it, in the status and in what the doctor says."""

from typing import Any

import msgspec
import pytest

from punie_protocol.client import ModelStatus
from punie_protocol.engine import (
    ClientUsage,
    DraftCounts,
    DraftModelStatus,
    EngineSettings,
    EngineStatus,
    Histogram,
    KVStatus,
    Speculation,
)
from punie_supervisor.cli import checks
from punie_supervisor.cli.checks import Level
from punie_supervisor.cli.engine_text import lines
from punie_supervisor.cli.status_text import WIDTH, render
from tests.unit.test_cli_status import report

GAPS = Histogram(bounds=[0.01, 0.02, 2.0], counts=[10, 10, 0, 0], sum=0.2)


def engine(**fields: Any) -> EngineStatus:
    given: dict[str, Any] = {
        "steps": 9,
        "running": 2,
        "queued": 1,
        "batch": 2,
        "requests": {"finished": 38, "cancelled": 1, "failed": 0, "rejected": 2},
        "cached_share": 0.81,
        "prefill_tok_s": 1234.5,
        "decode_tok_s": 8.46,
        "ttft_s": Histogram(bounds=[0.1, 4.0], counts=[0, 10, 0], sum=20),
        "gap_s": GAPS,
        "kv": KVStatus(
            running=100_000_000, reserved=20_000_000, cache=880_000_000, budget=2_000_000_000
        ),
        "clients": [ClientUsage(client_id="a"), ClientUsage(client_id="b")],
    }
    return EngineStatus(**given | fields)


def model(status: EngineStatus | None) -> ModelStatus:
    return ModelStatus(
        name="m", folder="/m", state="ready", pid=7, rss_bytes=1_000_000, engine=status
    )


def check(**fields: Any) -> checks.Check:
    [found] = checks.engine(model(engine(**fields)))
    return found


def test_an_engine_at_work() -> None:
    assert list(lines(engine())) == [
        "2 running, 1 queued, batch 2, 2 clients",
        "41 requests ended (1 cancelled, 2 rejected)",
        "prefill 1234 tokens/s, decode 8.5 tokens/s lately, 81% of input cached",
        "first token 2.0 s (p95 3.8 s), between tokens 10 ms (p95 19 ms)",
        "keys and values 1.0 GB of 2.0 GB",
    ]


def test_an_engine_at_rest() -> None:
    first, second, *_ = lines(
        engine(running=0, queued=0, requests={"finished": 1}, clients=[ClientUsage(client_id="a")])
    )
    assert (first, second) == ("idle, 1 client", "1 request ended")


def test_the_first_request() -> None:
    status = EngineStatus(queued=1, clients=[ClientUsage(client_id="a", queued=1)])
    assert list(lines(status)) == [
        "1 queued, 1 client",
        "0 requests ended",
        "0% of input cached",
        "keys and values 0 MB",
    ]


@pytest.mark.parametrize("status", [None, EngineStatus()])
def test_nothing_is_said_of_an_engine_that_did_nothing(status: EngineStatus | None) -> None:
    assert list(lines(status)) == []
    assert "engine" not in render(report(model=model(status)))
    assert checks.engine(model(status)) == []


def test_drafts_are_told_by_their_source() -> None:
    counts = {
        "ngram": DraftCounts(proposed=1200, accepted=900, emitted=1300),
        "draft": DraftCounts(proposed=10, accepted=0, emitted=5),
    }
    found = engine(drafts=counts, draft_model=DraftModelStatus(name="small"))
    assert list(lines(found))[-3:] == [
        "draft model small",
        "n-gram drafts: 900 of 1200 accepted (75%), 3.2 tokens a step",
        "draft model's drafts: 0 of 10 accepted (0%), 1.0 tokens a step",
    ]
    assert list(lines(engine(drafts={"ngram": DraftCounts()}))) == list(lines(engine()))


def test_a_draft_model_that_is_not_used_is_told_before_any_request() -> None:
    status = EngineStatus(draft_model=DraftModelStatus(error="its tokenizer\x1b is another"))
    assert list(lines(status)) == ["no draft model: its tokenizer␛ is another"]


def test_settings_are_told_when_somebody_chose_them() -> None:
    def told(settings: EngineSettings | None) -> str:
        chosen = msgspec.structs.replace(model(None), settings=settings)
        return render(report(model=chosen))

    assert "speculation" not in told(None) + told(EngineSettings(max_batch=3))
    chosen = EngineSettings(speculation=Speculation.DRAFT, num_draft_tokens=3, draft_model="small")
    line = "engine   speculation draft, draft model small, at most 3 drafted tokens"
    assert line in told(chosen).splitlines()


def test_the_cache_on_disk_is_told() -> None:
    *_, last = lines(engine(kv=KVStatus(cache=5_000_000, disk=3_000_000_000, budget=10_000_000)))
    assert last == "keys and values 5 MB of 10 MB, 3.0 GB on disk"


def test_it_stands_below_the_model_and_fits_a_terminal() -> None:
    busy = engine(
        running=64,
        prefilling=12,
        queued=1000,
        batch=64,
        requests={"finished": 999_999, "cancelled": 9999, "failed": 999, "rejected": 9999},
        clients=[ClientUsage(client_id=str(n)) for n in range(257)],
        kv=KVStatus(running=123_456_789_012, budget=234_567_890_123, disk=345_678_901_234),
    )
    found = render(report(model=model(busy))).splitlines()
    assert found[2] == "engine   64 running, 12 prefilling, 1000 queued, batch 64, 257 clients"
    assert found[1].startswith("model ")
    assert all(line.startswith(" " * 9) for line in found[3:7])
    assert max(map(len, found)) <= WIDTH


def test_the_doctor_finds_it_well() -> None:
    assert (check().level, check().text) == (
        Level.OK,
        "41 requests ended (1 cancelled, 2 rejected), 81% of input cached",
    )


def test_the_doctor_warns_of_requests_that_failed() -> None:
    found = check(requests={"finished": 1, "failed": 2})
    assert (found.level, found.text) == (Level.WARN, "3 requests ended (2 failed)")
    assert "punie logs" in found.hint


def test_the_doctor_warns_when_too_many_waited() -> None:
    found = check(requests={"rejected": 5}, rejected={"overloaded": 3, "invalid_request": 2})
    assert found.level is Level.WARN
    assert found.text == "5 requests ended (5 rejected), 3 of those because too many waited"
    assert "status --json" in found.hint


def test_the_doctor_warns_of_a_draft_model_that_is_not_used() -> None:
    status = EngineStatus(draft_model=DraftModelStatus(error="its tokenizer is another"))
    [found] = checks.engine(model(status))
    assert (found.level, found.text) == (Level.WARN, "no draft model: its tokenizer is another")
    assert "punie model use --draft-model" in found.hint
    working = checks.engine(model(engine(draft_model=status.draft_model)))
    assert [one.level for one in working] == [Level.OK, Level.WARN]
