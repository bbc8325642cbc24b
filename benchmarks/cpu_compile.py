"""`mx.compile` on the CPU: the first answer and the steady rate, with it and without.

``python -m benchmarks.cpu_compile --json``. Each variant is a fresh process, its folder for
compiled kernels empty, with the embedded model; answers are sampled (temperature 0.7), 64 tokens.
Then a decode step of 8 rows with 300 tokens each, of the dense model of `benchmarks.engine`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common, engine_models

CHILD = """
import json, sys, time
from pathlib import Path
from punie_model_host import blas
if (library := blas.wanted({}, Path(sys.prefix), sys.platform)) is not None:
    blas.load(library, 2)
import mlx.core as mx
if sys.argv[1] == "off":
    mx.disable_compile()
from mlx_lm import stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load
import punie_model_host.embedded
model, tokenizer = load(next(iter(punie_model_host.embedded.__path__)))
model.set_dtype(mx.float32)
mx.eval(model.parameters())
sampler = make_sampler(0.7, top_p=0.9)
times = []
for _ in range(4):
    start = time.perf_counter()
    tokens = list(stream_generate(model, tokenizer, "def", max_tokens=64, sampler=sampler))
    times.append((time.perf_counter() - start) * 1000 / len(tokens) * 64)
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.utils import load_model
larger, _ = load_model(Path(sys.argv[2]))
cache = [BatchKVCache([0] * 8) for _ in larger.layers]
mx.eval(larger(mx.ones((8, 300), mx.int32), cache=cache))
token, steps = mx.ones((8, 1), mx.int32), []
for _ in range(60):
    start = time.perf_counter()
    token = mx.argmax(larger(token, cache=cache)[:, -1:], axis=-1)
    mx.eval(token)
    steps.append((time.perf_counter() - start) * 1000)
print(json.dumps({"answers": times, "steps": steps}))
"""


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=3)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "dense"
        engine_models.write("dense", model)
        samples = {
            variant: [_measured(variant, model) for _ in range(options.samples)]
            for variant in ("on", "off")
        }
    result: dict[str, Any] = {"samples": samples}
    for variant, runs in samples.items():
        result[f"first_answer_ms_{variant}"] = common.median([run["answers"][0] for run in runs])
        result[f"later_answers_ms_{variant}"] = common.median(
            [ms for run in runs for ms in run["answers"][1:]]
        )
        result[f"step_of_8_ms_{variant}"] = common.median(
            [ms for run in runs for ms in run["steps"]]
        )
    common.finish(result, as_json=options.json)


def _measured(variant: str, model: Path) -> dict[str, list[float]]:
    """Return the milliseconds of four answers of a fresh process, scaled to 64 tokens, and of its
    steps with the larger `model`."""
    with tempfile.TemporaryDirectory() as folder:
        environ = os.environ | {"TMPDIR": folder, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, variant, str(model)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
