"""What drafts from a request's own tokens bring, and what they cost where nothing repeats.

``python -m benchmarks.engine_speculation FOLDER [--rounds N] [--quick] [--shared] [--profile]``.
FOLDER is a ``code`` model of `benchmarks.engine_models`. Two engines in this process, with
speculation off and from n-grams, answer the same requests in turn, the answers set beforehand (see
`benchmarks.engine_forced`). With ``--shared`` MLX computes in one thread and all times are this
process's processor time, which busy neighbours change little; the engine's own clock is that too.
"""

import argparse
import cProfile
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import edit_tasks, engine_profile
from benchmarks.edit_answers import Shown
from punie_model_host import blas
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.messages.to_model_host import Sampling

if TYPE_CHECKING:
    from benchmarks.engine_forced import ForcedEngine, Sample

SIDES: Final = (Speculation.OFF, Speculation.NGRAM)
_MEMORY_MB: Final = 512
"""Of keys and values: what a round leaves in the prefix cache is no use to the next."""
_DRAWN: Final = Sampling(temperature=0.7, top_p=0.8, top_k=20, seed=1)
"""What Qwen3-Coder's own configuration asks for."""

type Tokens = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Work:
    """Groups of tasks, each answered at once; or of prompts and answers that are tokens."""

    groups: Sequence[Sequence[edit_tasks.Task]] = ()
    tokens: Sequence[Sequence[Tokens]] = ()
    sampling: Sampling | None = None

    def answer(self, engine: ForcedEngine) -> list[Sample]:
        """Answer all of it."""
        return [
            *(engine.answer(group, self.sampling) for group in self.groups),
            *(engine.answer_tokens(group) for group in self.tokens),
        ]


def main() -> None:
    """Measure and print."""
    options = _options()
    library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
    if library is not None:
        blas.load(library, 1 if options.shared else blas.threads(os.process_cpu_count() or 1))
    clock = time.process_time if options.shared else time.perf_counter
    bench = Bench(options.folder, clock, options.only.split(",") if options.only else None)
    bench.warm_up()
    for number in range(options.rounds):
        bench.round(number, quick=options.quick)
    result = {"rounds": bench.rounds, "shared": options.shared, "step_ms": bench.step_ms()}
    if options.profile:
        result["profile"] = bench.profile()
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", help="names of workloads")
    parser.add_argument("--quick", action="store_true", help="batch 1 and short answers")
    parser.add_argument("--shared", action="store_true", help="by processor time, in one thread")
    parser.add_argument("--profile", action="store_true", help="where a step's time goes")
    return parser.parse_args()


def works(tasks: edit_tasks.Tasks, number: int, vocabulary: int, *, quick: bool) -> dict[str, Work]:
    """Return what is answered in that round; what costs long and no promise needs, in the first
    alone."""
    misleading = edit_tasks.misleading(400, vocabulary, f"misleading {number}")
    found = {
        "str_replace_1": Work([[one] for one in tasks.replaces(1 if quick else 3)]),
        "nomatch_misled": Work(tokens=[[misleading]]),
        "rewrite_1": Work([tasks.rewrites(1)]),
    }
    if quick:
        return found
    found |= {
        "rewrite_4": Work([tasks.rewrites(4)]),
        "str_replace_4": Work([tasks.replaces(4)]),
        "nomatch_code": Work([tasks.new_code(1)]),
    }
    if number == 0:
        found |= {
            "str_replace_sampled_1": Work([[one] for one in tasks.replaces(2)], sampling=_DRAWN),
            "str_replace_json_1": Work([[one] for one in tasks.replaces(2, Shown.JSON)]),
            "rewrite_json_1": Work([tasks.rewrites(1, Shown.JSON)]),
        }
    return found


class Bench:
    """Two engines, and what each of them took in each round."""

    def __init__(
        self, folder: Path, clock: Callable[[], float], only: Sequence[str] | None = None
    ) -> None:
        from benchmarks.engine_forced import ForcedEngine

        self._engines = {side: ForcedEngine(folder, _settings(side), clock=clock) for side in SIDES}
        self._only = only
        self._clock = clock
        self._tasks = edit_tasks.Tasks()
        self.rounds: list[dict[str, Any]] = []

    def warm_up(self) -> None:
        """Compute once what every task begins with, and let the engines see what a step takes."""
        (task,) = self._tasks.replaces(1)
        for engine in self._engines.values():
            engine.answer([task])

    def round(self, number: int, *, quick: bool) -> None:
        """Answer everything with both; who comes first changes from round to round."""
        sides = SIDES if number % 2 == 0 else SIDES[::-1]
        vocabulary = self._engines[SIDES[0]].vocabulary
        found: dict[str, Any] = {}
        for name, work in works(self._tasks, number, vocabulary, quick=quick).items():
            if self._only is not None and name not in self._only:
                continue
            samples = {side: _together(work.answer(self._engines[side])) for side in sides}
            found[name] = samples
            shown = {side.value: sample["tok_s"] for side, sample in samples.items()}
            sys.stderr.write(f"{name}: {shown}\n")
        self.rounds.append(found)

    def step_ms(self) -> dict[int, dict[int, float]]:
        """Return what the engine that drafts has measured of forwards: by rows, by tokens of a
        row."""
        serving = self._engines[Speculation.NGRAM].engine._serving
        assert serving is not None
        return speculation_costs(serving)

    def profile(self) -> dict[str, Any]:
        """Return where the time of steps goes, off and with drafts, of one file written again."""
        tasks = self._tasks.rewrites(1)
        return {side.value: _profiled(self._engines[side], tasks, self._clock) for side in SIDES}


def _settings(side: Speculation) -> EngineSettings:
    return EngineSettings(disk_mb=0, memory_mb=_MEMORY_MB, speculation=side)


def _together(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the figures of all groups of a workload."""
    first, *others = samples
    for other in others:
        first += other
    return first.figures()


def speculation_costs(serving: Any) -> dict[int, dict[int, float]]:
    """Return the milliseconds of forwards by rows and width, as the engine's gate knows them."""
    cells = serving.speculator._costs._cells
    return {
        rows: {width: round(cell.seconds * 1000, 3) for width, cell in sorted(of.items())}
        for rows, of in sorted(cells.items())
    }


def _profiled(
    engine: ForcedEngine, tasks: Sequence[edit_tasks.Task], clock: Callable[[], float]
) -> dict[str, Any]:
    profiler = cProfile.Profile(clock)
    profiler.enable()
    sample = engine.answer(tasks)
    profiler.disable()
    return sample.figures() | engine_profile.shares(profiler, sample.steps)


if __name__ == "__main__":
    main()
