"""The results of `benchmarks.engine` as the table of ``docs/reference/benchmarks.md``.

``python -m benchmarks.engine --json > FILE; python -m benchmarks.engine_table FILE`` writes it into
the page, between its two marks; with ``--print`` to the terminal.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "benchmarks.md"
BEGIN: Final = "<!-- figures: python -m benchmarks.engine_table -->"
END: Final = "<!-- end of the figures -->"
GOALS: Final = {
    "tok_s_ratio_1": ">= 0.95",
    "tok_s_ratio_8": ">= 1.0",
    "join_ttft_ratio": "<= 0.1",
    "gap_ratio": "<= 0.1",
    "cached_share": ">= 0.97",
    "cached_share_after_restart": ">= 0.95",
    "batch_scaling_16": ">= 6",
    "fairness": "",
    "rewrite_speedup_1": ">= 1.6",
    "rewrite_speedup_4": ">= 1.6",
    "str_replace_speedup_1": ">= 1.2",
    "str_replace_speedup_4": ">= 1.1",
    "nomatch_slowdown": "<= 1.05",
    "server_draft_ratio_8": ">= 2",
    "toolcall_repair_share": ">= 0.99",
}
"""The figures with their goals; one without a goal is for comparison."""


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="what benchmarks.engine printed")
    parser.add_argument("--print", action="store_true", help="to the terminal, not into the page")
    options = parser.parse_args()
    text = table(json.loads(options.result.read_text().splitlines()[-1]))
    if options.print:
        print(text)
        return
    PAGE.write_text(filled(PAGE.read_text(), text))


def filled(page: str, text: str) -> str:
    """Return the page with `text` between its marks. Raises `ValueError` without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN!r} ... {END!r}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown; one that was not measured has a dash."""
    machine = result["machine"]
    where = f"{machine['system']}, {machine['cpu_count']} cores, {machine['memory_gb']:g} GB"
    load = f"load average {machine['load_average'][0]:g} at the end"
    lines = [
        f"Measured on {where}, Python {machine['python']}, {_versions(result)}; {load}.",
        "",
        "| figure | measured | goal |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {_shown(result.get(name))} | {goal.replace('>=', '≥').replace('<=', '≤')} |"
        for name, goal in GOALS.items()
    ]
    return "\n".join([*lines, *_workloads(result), *_sweep(result), *_packed(result)])


def _versions(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in result["versions"].items())


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "–"


def _workloads(result: Mapping[str, Any]) -> list[str]:
    """The workloads of speculation one by one."""
    found = result.get("speedups") or {}
    if not found:
        return []
    rows = [
        f"| `{name}` | {_shown(ratio)} | {_shown(result['acceptance'][name])} "
        f"| {_shown(result['tokens_a_step'][name])} |"
        for name, ratio in found.items()
    ]
    head = "| workload | tokens/s, n-grams over off | right drafts | tokens a step |"
    return ["", head, "|---|---|---|---|", *rows]


def _sweep(result: Mapping[str, Any]) -> list[str]:
    sweep = result.get("draft_k") or {}
    if not sweep:
        return []
    rows = [
        f"| {count} | {_shown(of['tok_s'])} | {_shown(of['acceptance'])} "
        f"| {_shown(of['mlx_peak_mb'])} | {_shown(of['process_peak_mb'])} |"
        for count, of in sweep.items()
    ]
    head = "| draft tokens at most | tokens/s | right | MLX at most, MB | process at most, MB |"
    return ["", head, "|---|---|---|---|---|", *rows]


def _packed(result: Mapping[str, Any]) -> list[str]:
    packed = result.get("quantized") or {}
    if not packed:
        return []
    rows = [
        f"| {name} | {_shown(of['tok_s'])} | {_shown(of['weights_mb'])} |"
        for name, of in packed.items()
    ]
    return ["", "| weights | tokens/s | MB |", "|---|---|---|", *rows]


if __name__ == "__main__":
    main()
