"""Keys and values in 8 and 4 bits against unpacked ones: a prompt's tokens a second, a decode
step's tokens a second, bytes.

``python -m benchmarks.kv_bits --json``. Random weights of a dense Qwen3 (8 layers, 4 heads of 64
for keys and values), the engine's own batch and caches, no scheduler. Each sample computes a prompt
in chunks of 128, copies it into the rows of a batch and decodes; kinds take turns.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from punie_model_host import blas

if (library := blas.wanted(os.environ, Path(sys.prefix), sys.platform)) is not None:
    blas.load(library, 1)

import mlx.core as mx
from mlx_lm.models import qwen3

from benchmarks import common, engine_models
from punie_model_host.batch import RaggedBatch, Row
from punie_model_host.engine_messages import Key
from punie_model_host.kv_arrays import size_of
from punie_model_host.profile import KVQuantization, SamplingProfile
from punie_model_host.sampling import RowSampler
from punie_model_host.sampling_plan import plan_sampling
from punie_model_host.sequences import new_caches, span_of
from punie_protocol.messages.to_model_host import Sampling

KINDS: Final = {
    "plain": None,
    "8 bits": KVQuantization(8, 64),
    "4 bits": KVQuantization(4, 64),
}
LENGTHS: Final = (512, 2048)
ROWS: Final = (1, 4)
_CHUNK: Final = 128
_STEPS: Final = 12
_VOCABULARY: Final = 4096


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=3)
    mx.disable_compile()
    config = engine_models.KINDS["dense"] | engine_models._SHARED | {"vocab_size": _VOCABULARY}
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    samples: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.samples):
        for name, packing in KINDS.items():
            for length in LENGTHS:
                for figure, value in measure(model, packing, length).items():
                    samples.setdefault(name, {}).setdefault(figure, []).append(value)
    figures = {
        name: {figure: common.median(values) for figure, values in its.items()}
        for name, its in samples.items()
    }
    if not options.json:
        for name, its in figures.items():
            print(name, its)
    print(json.dumps(figures))


def measure(model: Any, packing: KVQuantization | None, length: int) -> dict[str, float]:
    """Return tokens a second of a prompt of so many, and of rows that have so many; bytes."""
    prompt = [n * 37 % _VOCABULARY for n in range(length)]
    caches = new_caches(model, packing)

    def prefill() -> None:
        for start in range(0, length, _CHUNK):
            model(mx.array([prompt[start : start + _CHUNK]]), cache=caches)
            mx.eval([cache.state for cache in caches])

    figures = {f"prefill_{length}": length * 1000 / common.timed(prefill)}
    figures[f"bytes_a_token_{length}"] = size_of([span_of(c, 0, 1) for c in caches])
    for rows in ROWS:
        batch = RaggedBatch(model, len(caches), packing)
        for number in range(rows):
            batch.join(_row(caches, number, length - 8 * number))
        _steps(batch, 2)
        took = common.timed(lambda batch=batch: _steps(batch, _STEPS))
        figures[f"decode_{length}x{rows}"] = rows * _STEPS * 1000 / took
    return figures


def _steps(batch: RaggedBatch, steps: int) -> None:
    for _ in range(steps):
        batch.dispatch()
        batch.read()


def _row(caches: list[Any], number: int, length: int) -> Row:
    sampler = RowSampler(
        plan_sampling(Sampling(), SamplingProfile(), _VOCABULARY), _VOCABULARY, [1]
    )
    token = mx.array([1], dtype=mx.uint32)
    return Row(key=Key(1, number), caches=caches, length=length, token=token, sampler=sampler)


if __name__ == "__main__":
    main()
