"""Where a step of the engine spends its time: ``python -m benchmarks.engine_profile FOLDER``.

The engine alone, without sockets, threads or a door, answers the same requests twice: once plainly,
which gives the times, and once under ``cProfile``, which gives the shares. "Computing" is where the
engine waits for MLX, all else is its own work.
"""

import cProfile
import gc
import json
import os
import pstats
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.engine_text import Words
from punie_model_host import blas
from punie_protocol.engine import DraftCounts, EngineSettings
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_host import Generate, Sampling, UserMessage

PROMPT: Final = 256
ANSWER: Final = 128
CLIENTS: Final = (1, 8)
_TOP: Final = 25
_COMPUTING: Final = (
    *(("sampling.py", "read"), ("batch.py", "dispatch")),
    *(("serving.py", "wait"), ("serving.py", "_chunk")),
)
"""Functions that wait for MLX: on the CPU its ``async_eval`` too returns when little is left."""
_PARTS: Final = {
    "building the forward pass": ("qwen3.py", "qwen3_moe.py", "base.py", "ragged.py", "switch"),
    "rows of the batch": ("batch.py",),
    "sampling": ("sampling.py", "sampling_plan.py"),
    "drafting": ("ngram.py", "speculation.py", "step_costs.py", "ledger.py", "draft_model.py"),
    "scheduling": ("scheduler.py", "shares.py", "jobs.py", "admission.py", "memory.py"),
    "caches": ("prefix_cache.py", "token_trie.py", "resident.py", "kv_tier.py", "serving.py"),
    "reading requests": ("prepare.py", "chat.py", "quoting.py"),
    "writing answers": ("request.py", "output.py", "stops.py", "toolcalls.py", "tag_reader.py"),
    "figures": ("metrics.py",),
    "engine": ("engine.py", "engine_messages.py"),
}
"""By the end of a file's path. mlx's layers, other files and builtins: see `_part_of`."""


def main() -> None:
    """Measure and print."""
    library = blas.wanted(os.environ, Path(sys.prefix), sys.platform)
    if library is not None:
        blas.load(library, blas.threads(os.process_cpu_count() or 1))
    run = Run(Path(sys.argv[1]))
    run.answer(8, "warm-up")
    print(json.dumps({f"{clients}_clients": measure(run, clients) for clients in CLIENTS}))


class Run:
    """An engine with a model. All times are `clock`'s. `texts` are the answers since it was set to
    an empty list."""

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from punie_model_host.engine import Engine
        from punie_model_host.engine_messages import LoadCommand

        self.emitted = 0
        self.tokens = 0
        self.texts: list[list[str]] = []
        self._clock = clock
        settings = settings or EngineSettings(disk_mb=0)
        self.engine = Engine(folder.parent, settings, self._emit, clock=clock)
        self.engine.handle(LoadCommand(1, str(folder)))
        while self.engine.has_work:
            self.engine.step()

    def _emit(self, emission: object) -> None:
        from punie_model_host.engine_messages import ToClient
        from punie_protocol.messages.to_model_client import Failed, Finished, TextDelta

        self.emitted += 1
        match emission:
            case ToClient(_, TextDelta(text=text)) if self.texts:
                self.texts[-1].append(text)
            case ToClient(_, Failed(error=error)):
                raise RuntimeError(f"a request failed: {error}")
            case ToClient(_, Finished(usage=usage)):
                self.tokens += usage.output_tokens

    def answer(self, clients: int, seed: str) -> list[float]:
        """Answer a question of each client; return the seconds of each step."""
        from punie_model_host.engine_messages import Key, Submit

        words = Words(seed)
        self.texts.append([])
        for number in range(clients):
            key = Key(1, number)
            request = _request(number, words.text(PROMPT))
            self.engine.handle(Submit(key, request, self._clock()))
        steps = []
        while self.engine.has_work:
            start = self._clock()
            self.engine.step()
            steps.append(self._clock() - start)
        return steps

    def drafts(self, source: str = "draft") -> DraftCounts:
        """Return what became of the drafts of a source so far."""
        status = self.engine._metrics.snapshot(self.engine._gauges())
        return status.drafts.get(source, DraftCounts())


def _request(number: int, text: str) -> Generate:
    return Generate(
        request_id=number,
        client_id=f"client{number}",
        conversation_id="",
        priority=Priority.INTERACTIVE,
        messages=[UserMessage(text=text)],
        sampling=Sampling(temperature=0.0, max_tokens=ANSWER),
    )


def measure(run: Run, clients: int) -> dict[str, Any]:
    """Return the times of steps, and the shares of each part and of the costliest functions."""
    gc.collect()
    run.emitted = run.tokens = 0
    started = time.perf_counter()
    steps = run.answer(clients, f"plain-{clients}")
    wall = time.perf_counter() - started
    tokens = run.tokens
    profiler = cProfile.Profile()
    profiler.enable()
    profiled = run.answer(clients, f"profiled-{clients}")
    profiler.disable()
    decode = sorted(steps)[: len(steps) * 3 // 4]  # but the steps that prefill
    return {
        "steps": len(steps),
        "tok_s": round(tokens / wall, 2),
        "step_ms_p50": round(statistics.median(steps) * 1000, 3),
        "decode_step_ms_p50": round(statistics.median(decode) * 1000, 3),
        "profiled_over_plain": round(sum(profiled) / sum(steps), 3),
        **shares(profiler, len(profiled)),
    }


def shares(profiler: cProfile.Profile, steps: int) -> dict[str, Any]:
    """Return the milliseconds of `steps` that parts of the engine and functions took."""
    times = _own_times(profiler)
    return {
        "parts_ms_a_step": _parts(times, steps),
        "functions_ms_a_step": _costliest(times, steps),
    }


def _own_times(profiler: cProfile.Profile) -> dict[tuple[str, str], float]:
    """Return each function's own seconds, by file and name; builtins count to who calls them."""
    times: dict[tuple[str, str], float] = defaultdict(float)
    stats: dict[Any, Any] = vars(pstats.Stats(profiler))["stats"]
    for (file, _, name), (_, _, own, _, callers) in stats.items():
        if file != "~":
            times[file, name] += own
            continue
        for (caller, _, function), (_, _, part, _) in callers.items():
            times[caller, function] += part
    return times


def _parts(times: dict[tuple[str, str], float], steps: int) -> dict[str, float]:
    parts: dict[str, float] = defaultdict(float)
    for (file, name), own in times.items():
        parts[_part_of(file, name)] += own
    costliest = sorted(parts.items(), key=lambda part: -part[1])
    return {name: round(own / steps * 1000, 4) for name, own in costliest}


def _costliest(times: dict[tuple[str, str], float], steps: int) -> dict[str, float]:
    """Return the functions with most time of their own."""
    costliest = sorted(times.items(), key=lambda one: -one[1])[:_TOP]
    return {
        f"{'/'.join(Path(file).parts[-2:])}:{name}": round(own / steps * 1000, 4)
        for (file, name), own in costliest
    }


def _part_of(file: str, name: str) -> str:
    if any(file.endswith(f"punie_model_host/{end}") and name == one for end, one in _COMPUTING):
        return "computing"
    if "/mlx/nn/" in file or "/mlx_lm/models/" in file:
        return "building the forward pass"
    if "tokenizer" in file:
        return "writing answers"
    found = (part for part, ends in _PARTS.items() if Path(file).name in ends)
    return next(found, "other")


if __name__ == "__main__":
    main()
