"""Packed weights against plain ones: ``python -m benchmarks.engine_quantized FOLDER [--shared]``.

The same model in each number of bits, packed by mlx-lm and answering in our engine, one request at
a time: tokens a second while it decodes, and bytes. On a CPU unpacking costs more than the memory
it saves reading; the figures say how much, and that every kind runs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import engine_profile
from punie_model_host import blas

KINDS: Final = ((8, 64), (4, 64))
"""Bits and numbers of a group."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", action="store_true", help="by processor time, in one thread")
    options = parser.parse_args()
    library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
    if library is not None:
        blas.load(library, 1 if options.shared else blas.threads(os.process_cpu_count() or 1))
    clock = time.process_time if options.shared else time.perf_counter
    with tempfile.TemporaryDirectory(prefix="pq-") as scratch:
        folders = {"plain": options.folder}
        for bits, group in KINDS:
            folders[f"{bits} bits of {group}"] = _packed(
                options.folder, Path(scratch) / f"{bits}-{group}", bits, group
            )
        found: dict[str, Any] = {}
        for name, folder in folders.items():
            steps = engine_profile.Run(folder, clock=clock).answer(1, "packed")
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            found[name] = {
                "tok_s": round(1 / statistics.median(steps), 2),
                "weights_mb": round(size / 1e6, 1),
            }
    print(json.dumps(found))


def _packed(folder: Path, target: Path, bits: int, group: int) -> Path:
    """Write the model with packed weights."""
    from mlx_lm.convert import convert

    convert(str(folder), str(target), quantize=True, q_bits=bits, q_group_size=group)
    return target


if __name__ == "__main__":
    main()
