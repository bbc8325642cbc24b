"""OpenBLAS threads: a prompt's prefill with a thread on every core and with one core left free,
on an idle machine and beside one busy process.

``python -m benchmarks.blas_threads --json``. Each variant is a fresh process with the embedded
model in fp32; 64 tokens are computed 20 times.
"""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import common

CHILD = """
import json, sys, time
from pathlib import Path
from punie_model_host import blas
library = blas.wanted({}, Path(sys.prefix), sys.platform)
if library is None:
    sys.exit("no OpenBLAS here: run scripts/bootstrap --again")
blas.load(library, int(sys.argv[1]))
import mlx.core as mx
mx.disable_compile()
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load
import punie_model_host.embedded
model, _ = load(next(iter(punie_model_host.embedded.__path__)))
model.set_dtype(mx.float32)
mx.eval(model.parameters())
prompt = mx.arange(64)[None]
times = []
for _ in range(20):
    start = time.perf_counter()
    mx.eval(model(prompt, cache=make_prompt_cache(model)))
    times.append((time.perf_counter() - start) * 1000)
print(json.dumps(times[1:]))
"""


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=2)
    cores = os.process_cpu_count() or 1
    samples: dict[str, list[float]] = {}
    for neighbours, load in ((0, "idle"), (1, "busy")):
        for threads, name in ((cores, "every_core"), (max(1, cores - 1), "one_free")):
            runs = [_prefills(threads, neighbours) for _ in range(options.samples)]
            samples[f"{name}_{load}"] = [ms for run in runs for ms in run]
    result: dict[str, Any] = {f"{name}_ms": common.median(ms) for name, ms in samples.items()}
    common.finish(result | {"samples": samples}, as_json=options.json)


def _prefills(threads: int, neighbours: int) -> list[float]:
    """Return the milliseconds of each prefill, beside so many busy processes."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_NUM")}
    busy = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(neighbours)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(threads)],
            env=environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
