"""What a draft model brings at each length of its drafts, one request at a time.

``python -m benchmarks.engine_drafts TARGET DRAFT COUNT [--shared]``. The models are ``drafted`` and
``draft`` of `benchmarks.engine_models`; COUNT 0 is without. What the model says is its own free
choice, greedily; each COUNT is a process of its own, so that its memory is its own. ``--shared``:
see `benchmarks.engine_speculation`.
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import engine_profile
from punie_model_host import blas
from punie_protocol.engine import EngineSettings, Speculation

REQUESTS: Final = 3
_KIB: Final = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit that the system counts a process's memory in."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--shared", action="store_true", help="by processor time, in one thread")
    options = parser.parse_args()
    library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
    if library is not None:
        blas.load(library, 1 if options.shared else blas.threads(os.process_cpu_count() or 1))
    clock = time.process_time if options.shared else time.perf_counter
    run = engine_profile.Run(options.target, settings(options.draft, options.count), clock)
    print(json.dumps(measure(run)))


def settings(draft: Path, count: int) -> EngineSettings:
    """Return those of an engine whose drafts have at most `count` tokens."""
    if not count:
        return EngineSettings(disk_mb=0, speculation=Speculation.OFF)
    return EngineSettings(
        disk_mb=0,
        speculation=Speculation.DRAFT,
        num_draft_tokens=count,
        draft_model=str(draft),
    )


def measure(run: engine_profile.Run) -> dict[str, Any]:
    """Return tokens a second with the prompts, what became of the drafts, and the bytes that MLX
    and the process had at most; `answers` are digests, the same with every length."""
    import mlx.core as mx

    run.answer(1, "warm-up")
    before, run.tokens, run.texts = run.drafts(), 0, []
    seconds = sum(sum(run.answer(1, f"drafts-{number}")) for number in range(REQUESTS))
    proposed, accepted = (
        getattr(run.drafts(), name) - getattr(before, name) for name in ("proposed", "accepted")
    )
    return {
        "tok_s": round(run.tokens / seconds, 2),
        "proposed": proposed,
        "accepted": accepted,
        "acceptance": round(accepted / proposed, 3) if proposed else None,
        "mlx_peak_mb": round(mx.get_peak_memory() / 1e6, 1),
        "process_peak_mb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / 1e6, 1
        ),
        "answers": [hashlib.sha256("".join(texts).encode()).hexdigest() for texts in run.texts],
    }


if __name__ == "__main__":
    main()
