"""The last line of `benchmarks.engine`: named figures out of the raw samples."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks import engine_figures as figures

type Raw = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Samples by workload and side."""

SIDES: Final = ("ours", "theirs")
_STREAMS: Final = ("throughput/", "moe/", "embedded/", "server_draft/")
"""The workloads that count tokens a second."""


def of(raw: Raw) -> dict[str, Any]:
    """Return the figures; ``None`` where there are no samples."""
    return {
        "tok_s_ratio_1": _tok_s_ratio(raw, "throughput/1"),
        "tok_s_ratio_8": _tok_s_ratio(raw, "throughput/8"),
        **_join(raw),
        **_gap(raw),
        **_cached(raw),
        **_scaling(raw),
        "fairness": figures.rounded(_median(raw, "fairness", "ours", "fairness")),
        "fairness_theirs": figures.rounded(_median(raw, "fairness", "theirs", "fairness")),
        "fuzz_survived": _median(raw, "fuzz", "ours", "survived"),
        "fuzz_requests": _median(raw, "fuzz", "ours", "requests"),
        "tok_s_ratio_1_moe": _tok_s_ratio(raw, "moe/1"),
        "tok_s_ratio_8_moe": _tok_s_ratio(raw, "moe/8"),
        "tok_s_ratio_1_embedded": _tok_s_ratio(raw, "embedded/1"),
        "tok_s_ratio_8_embedded": _tok_s_ratio(raw, "embedded/8"),
        **_speculation(raw),
        **_drafts(raw),
        "server_draft_ratio_8": _tok_s_ratio(raw, "server_draft/8"),
        "toolcall_repair_share": _median(raw, "toolcalls", "ours", "share"),
        "toolcall_repair_entries": _median(raw, "toolcalls", "ours", "total"),
        "quantized": next(iter(raw.get("quantized", {}).get("ours", [])), None),
        "tok_s": _absolute(raw),
        "tok_cpu_s_ratio": _by_cpu(raw),
        "client_cpu_share": _client(raw),
    }


def rounded(value: Any) -> Any:
    """Return raw samples with floats as they are printed."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value


def _values(raw: Raw, name: str, side: str, key: str) -> list[Any]:
    return [sample[key] for sample in raw.get(name, {}).get(side, [])]


def _median(raw: Raw, name: str, side: str, key: str) -> float | None:
    return figures.middle(_values(raw, name, side, key))


def _tok_s_ratio(raw: Raw, name: str) -> float | None:
    return figures.ratio(*(_values(raw, name, side, "tok_s") for side in SIDES))


def _join(raw: Raw) -> dict[str, Any]:
    """All samples of all rounds together: the ratio of two differences needs many."""
    waits: dict[str, float | None] = {}
    found: dict[str, Any] = {}
    for side in SIDES:
        alone, joining = (
            [one for samples in _values(raw, "join", side, key) for one in samples]
            for key in ("alone_s", "joining_s")
        )
        waits[side] = figures.added(joining, alone)
        found[f"join_added_ms_{side}"] = figures.milliseconds(waits[side])
        found[f"ttft_alone_ms_{side}"] = figures.milliseconds(figures.middle(alone))
    return {"join_ttft_ratio": figures.time_ratio(waits["ours"], waits["theirs"])} | found


def _gap(raw: Raw) -> dict[str, Any]:
    gaps = {side: _median(raw, "gap", side, "gap_s") for side in SIDES}
    before = {side: _median(raw, "gap", side, "before_s") for side in SIDES}
    long = {side: _median(raw, "gap", side, "long_ttft_s") for side in SIDES}
    return {
        "gap_ratio": figures.time_ratio(gaps["ours"], gaps["theirs"]),
        **{f"gap_ms_{side}": figures.milliseconds(gaps[side]) for side in SIDES},
        **{f"gap_before_ms_{side}": figures.milliseconds(before[side]) for side in SIDES},
        **{f"gap_long_ttft_ms_{side}": figures.milliseconds(long[side]) for side in SIDES},
    }


def _cached(raw: Raw) -> dict[str, Any]:
    names = {
        "cached": "cached_share",
        "cached_after_restart": "cached_share_after_restart",
        "cached_after_kill": "cached_share_after_kill",
    }
    found: dict[str, Any] = {}
    for name, figure in names.items():
        for side, end in (("ours", ""), ("theirs", "_theirs")):
            share = _median(raw, name, side, "share_of_ceiling")
            absolute = _median(raw, name, side, "share_of_prompt")
            found[figure + end] = figures.rounded(share)
            found[f"{figure}_of_prompt{end}"] = figures.rounded(absolute)
    return found


def _scaling(raw: Raw) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, end in (("ours", ""), ("theirs", "_theirs")):
        one, many = (_values(raw, f"scaling/{n}", side, "tok_s") for n in (1, 16))
        found[f"batch_scaling_16{end}"] = figures.ratio(many, one)
        found[f"decode_tok_s_1{end}"] = figures.rounded(figures.middle(one))
        found[f"decode_tok_s_16{end}"] = figures.rounded(figures.middle(many))
    found["batch_scaling_16_raw_forward"] = _median(raw, "raw", "ours", "scaling")
    return found


def speedups(rounds: Sequence[Mapping[str, Any]], key: str = "tok_s") -> dict[str, float]:
    """Return how many times as many tokens a second each workload gets with drafts: the median over
    the rounds of what both sides took of the same answers."""
    ratios: dict[str, list[float]] = {}
    for one in rounds:
        for name, sides in one.items():
            ratios.setdefault(name, []).append(sides["ngram"][key] / sides["off"][key])
    return {name: statistics.median(found) for name, found in ratios.items()}


def acceptance(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the share of draft tokens that were right, by workload."""
    counts: dict[str, list[int]] = {}
    for one in rounds:
        for name, sides in one.items():
            of = counts.setdefault(name, [0, 0])
            for drafts in sides["ngram"]["drafts"].values():
                of[0] += drafts["accepted"]
                of[1] += drafts["proposed"]
    return {name: figures.rounded(a / b) if b else None for name, (a, b) in counts.items()}


_SPEEDUPS: Final = ("rewrite", "str_replace")


def _speculation(raw: Raw) -> dict[str, Any]:
    rounds = [
        one for sample in raw.get("speculation", {}).get("ours", []) for one in sample["rounds"]
    ]
    found, whole = speedups(rounds), speedups(rounds, "whole_tok_s")
    slow = {name: 1 / ratio for name, ratio in found.items() if name.startswith("nomatch")}
    named = {
        f"{kind}_speedup_{batch}{end}": figures.rounded(of.get(f"{kind}_{batch}"))
        for kind in _SPEEDUPS
        for batch in (1, 4)
        for of, end in ((found, ""), (whole, "_whole"))
    }
    return {
        **named,
        "nomatch_slowdown": figures.rounded(max(slow.values(), default=None)),
        "nomatch_slowdowns": {name: figures.rounded(value) for name, value in slow.items()},
        "speedups": {name: figures.rounded(ratio) for name, ratio in found.items()},
        "acceptance": acceptance(rounds),
        "tokens_a_step": {
            name: figures.middle(
                [one[name]["ngram"]["tokens_a_step"] for one in rounds if name in one]
            )
            for name in found
        },
    }


def _drafts(raw: Raw) -> dict[str, Any]:
    """The sweep over the length of a draft, and whether every length gave the same answers."""
    names = sorted(name for name in raw if name.startswith("drafts/"))
    keys = ("tok_s", "acceptance", "mlx_peak_mb", "process_peak_mb")
    sweep = {
        name.removeprefix("drafts/"): {
            key: figures.rounded(
                figures.middle([one for one in _values(raw, name, "ours", key) if one is not None])
            )
            for key in keys
        }
        for name in names
    }
    answers = {str(one) for name in names for one in _values(raw, name, "ours", "answers")}
    return {"draft_k": sweep, "draft_answers_differ": len(answers) > 1}


def _absolute(raw: Raw) -> dict[str, Any]:
    return {
        name: {side: figures.rounded(_median(raw, name, side, "tok_s")) for side in SIDES}
        for name in raw
        if name.startswith(_STREAMS)
    }


def _by_cpu(raw: Raw) -> dict[str, float | None]:
    """Tokens for a second of the server's processor time, ours over theirs: what a busy neighbour
    on the machine changes least."""
    found = {}
    for name in (name for name in raw if name.startswith(_STREAMS)):
        rates = [
            [one["tokens"] / one["server_cpu_s"] for one in raw[name].get(side, [])]
            for side in SIDES
        ]
        found[name] = figures.ratio(*rates)
    return found


def _client(raw: Raw) -> dict[str, float]:
    shares = {
        side: [
            one["client_cpu_share"]
            for name in raw
            for one in raw[name].get(side, [])
            if "client_cpu_share" in one
        ]
        for side in SIDES
    }
    return {side: round(statistics.median(found), 4) for side, found in shares.items() if found}
