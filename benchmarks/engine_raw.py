"""How the forward pass alone scales with the batch: ``python -m benchmarks.engine_raw FOLDER``.

The model of mlx-lm with its own cache, in the setting of the model host (its BLAS on as many
threads, nothing compiled), without an engine: what an engine can reach at most.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Final

from punie_model_host import blas

STEPS: Final = 40
ROUNDS: Final = 5
PROMPT: Final = 40
BATCHES: Final = (1, 2, 4, 8, 16)


def main() -> None:
    """Measure and print."""
    library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
    if library is not None:
        blas.load(library, blas.threads(os.process_cpu_count() or 1))
    step_s = measure(Path(sys.argv[1]))
    tok_s = {rows: rows / statistics.median(times) for rows, times in step_s.items()}
    result = {
        "scaling": round(tok_s[16] / tok_s[1], 3),
        "tok_s": {rows: round(value, 2) for rows, value in tok_s.items()},
        "step_ms": {rows: [round(one * 1000, 3) for one in all_] for rows, all_ in step_s.items()},
    }
    print(json.dumps(result))


def measure(folder: Path) -> dict[int, list[float]]:
    """Return seconds a step, by batch size; a median a round."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    mx.disable_compile()
    model, _ = load(str(folder))[:2]
    found: dict[int, list[float]] = {rows: [] for rows in BATCHES}
    for _ in range(ROUNDS):
        for rows in BATCHES:
            cache = make_prompt_cache(model)
            tokens = mx.full((rows, 1), 9)
            mx.eval(model(mx.full((rows, PROMPT), 9), cache=cache))
            times = []
            for _ in range(STEPS):
                start = time.perf_counter()
                tokens = mx.argmax(model(tokens, cache=cache)[:, -1:, :], axis=-1)
                mx.eval(tokens)
                times.append(time.perf_counter() - start)
            found[rows].append(statistics.median(times))
    return found


if __name__ == "__main__":
    main()
