"""The corpus of malformed tool calls: every entry comes to what is documented."""

from collections import Counter

import pytest

from tests.support.toolcall_corpus import (
    FOLDER,
    WELL_FORMED,
    Entry,
    NamedCall,
    Outcome,
    entries,
    is_handled,
    outcome,
    schemas,
    share,
)
from tests.support.toolcall_generator import SEED, generate, lines

ENTRIES = entries()
DOCUMENT = FOLDER.parents[2] / "docs" / "reference" / "tool-calls.md"


@pytest.mark.parametrize("kind", sorted({entry.kind for entry in ENTRIES}))
def test_every_entry_of_a_kind_is_handled_as_documented(kind: str) -> None:
    for entry in ENTRIES:
        if entry.kind == kind:
            got = outcome(entry, [entry.text])
            assert is_handled(entry), f"{entry.id}: {entry.text!r} became {got}"


def test_the_share_that_the_benchmark_reads() -> None:
    found = share()
    assert found.total >= 400
    assert found.handled == sum(good for good, _ in found.by_kind.values())
    assert found.share >= 0.99, found.failed


def test_the_generator_makes_the_file_again_byte_for_byte() -> None:
    assert lines(SEED) == (FOLDER / "generated.jsonl").read_text("utf-8")


@pytest.mark.parametrize("seed", [2, 3])
def test_other_draws_of_the_generator_are_handled_too(seed: int) -> None:
    """What is handled is the damage, not the entry."""
    failed = [entry.id for entry in generate(seed) if not _is_handled_whole(entry)]
    assert not failed


def test_every_entry_has_its_own_id_and_a_documented_kind() -> None:
    assert max(Counter(entry.id for entry in ENTRIES).values()) == 1
    document = DOCUMENT.read_text("utf-8")
    assert not {e.kind for e in ENTRIES if e.kind != WELL_FORMED and e.kind not in document}
    assert {entry.schemas for entry in ENTRIES} <= set(schemas())


def test_a_wrong_outcome_does_not_pass() -> None:
    """The corpus can fail: every part of what is expected counts."""
    good = Outcome([NamedCall("f", {"n": 1, "m": 2})], "text", "thinking", "cut off here")
    assert good.fits(Outcome(good.calls, "text", "thinking", "cut off"))
    for bad in (
        Outcome([NamedCall("f", {"n": 1.0, "m": 2})], "text", "thinking", "cut off"),
        Outcome([NamedCall("f", {"n": True, "m": 2})], "text", "thinking", "cut off"),
        Outcome([*good.calls, *good.calls], "text", "thinking", "cut off"),
        Outcome(good.calls, "texts", "thinking", "cut off"),
        Outcome(good.calls, "text", "", "cut off"),
        Outcome(good.calls, "text", "thinking", None),
        Outcome(good.calls, "text", "thinking", "other"),
    ):
        assert not good.fits(bad)


def _is_handled_whole(entry: Entry) -> bool:
    return outcome(entry, [entry.text]).fits(entry.expect)
