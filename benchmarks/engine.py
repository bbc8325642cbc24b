"""Our engine against ``mlx_lm.server``: tokens a second, waits, caches, fairness; and what drafts
bring it. What each figure is: ``docs/reference/benchmarks.md``.

``python -m benchmarks.engine --json [--rounds N] [--only NAME,...] [--quick] [--profile]``. Both
serve the same models, made here of random fp32 weights, over HTTP to the same client. In each
round the one is asked, then the other, never both at once; figures are medians over the rounds.
With ``--profile`` a table of where a step's time goes is in it.
"""

import argparse
import asyncio
import importlib.metadata
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import common
from benchmarks import engine_plan as plan
from benchmarks import engine_summary as summary
from benchmarks import engine_workloads as workloads
from benchmarks.engine_servers import AnyServer, Ours, Peer, conditions, running
from punie_model_host import folder as model_folder

IDLE_BEFORE_KILL: Final = 15.0
"""Seconds without a request before the model host is killed: what it wrote until then is there."""
_PROGRAM: Final = 1_200.0
"""Seconds a program of its own may take."""
_FAULTS: Final = (RuntimeError, OSError, subprocess.SubprocessError, psutil.Error)
"""What a part that cannot be measured fails with; the others are measured all the same."""


def main() -> None:
    """Measure and print; exit status 1 when a part could not be measured."""
    options = _options()
    only = options.only.split(",") if options.only else [*plan.NAMES]
    if unknown := set(only) - {*plan.NAMES}:
        sys.exit(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(plan.NAMES)}")
    size = plan.QUICK if options.quick else plan.FULL
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # servers end too
    with tempfile.TemporaryDirectory(prefix="pe-") as folder:
        bench = Bench(Path(folder), size, options.rounds or size.rounds)
        asyncio.run(bench.measure(only))
        profile = bench.profile() if options.profile else None
    result = summary.of(bench.raw) | {
        "failed": bench.failed,
        "conditions": conditions()
        | {"rounds": bench.rounds, "quick": options.quick, "idle_before_kill_s": IDLE_BEFORE_KILL},
        "models": bench.models,
        "versions": {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "punie")},
        "wall_s": round(time.monotonic() - bench.started),
        "samples": summary.rounded(bench.raw),
    }
    common.finish(result | ({"profile": profile} if profile else {}), as_json=options.json)
    sys.exit(1 if bench.failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON alone, as the last line")
    parser.add_argument("--rounds", type=int, help="how many; medians are over them")
    parser.add_argument("--only", help=f"of {','.join(plan.NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a first impression, in minutes")
    parser.add_argument("--profile", action="store_true", help="where a step's time goes")
    return parser.parse_args()


@dataclass
class Bench:
    """What was measured: `raw` by workload and side, `failed` says why something was not."""

    scratch: Path
    size: plan.Size
    rounds: int
    raw: dict[str, dict[str, list[workloads.Sample]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    failed: dict[str, str] = field(default_factory=dict[str, str])
    models: dict[str, Any] = field(default_factory=dict[str, Any])
    started: float = field(default_factory=time.monotonic)

    async def measure(self, only: list[str]) -> None:
        """Measure those parts."""
        dense = {
            name: work for name, work in plan.dense(self.size).items() if name.split("/")[0] in only
        }
        if dense:
            await self._compare("dense", dense)
        if "scaling" in only:
            self._raw_scaling()
        if "cached" in only:
            await self._cached()
        if "moe" in only:
            await self._compare("moe", plan.streams("moe/", self.size))
        if "embedded" in only:
            await self._compare("embedded", plan.embedded())
        if "fuzz" in only:
            self._fuzz()
        if "server_draft" in only:
            await self._server_draft()
        self._programs(only)

    def _programs(self, only: list[str]) -> None:
        """Measure what needs no server."""
        if "speculation" in only:
            quick = ["--quick"] if self.size is plan.QUICK else []
            rounds = str(min(self.rounds, self.size.edits))
            folder = str(self._model("code"))
            self._program(
                "speculation", "benchmarks.engine_speculation", folder, "--rounds", rounds, *quick
            )
        if "drafts" in only:
            models = [str(self._model(kind)) for kind in ("drafted", "draft")]
            for _ in range(min(self.rounds, plan.FEWER["drafts"])):
                for count in plan.DRAFT_K:
                    name = f"drafts/{count}"
                    self._program(name, "benchmarks.engine_drafts", *models, str(count))
        if "toolcalls" in only:
            self._program("toolcalls", "benchmarks.toolcall_repair")
        if "quantized" in only:
            self._program("quantized", "benchmarks.engine_quantized", str(self._model("dense")))

    async def _server_draft(self) -> None:
        """The same with the same draft model beside the model. Theirs computes one request at a
        time then, which is how it is seen that it has one."""
        draft, count = str(self._model("draft")), plan.SERVER_DRAFT_K
        await self._compare(
            "drafted",
            plan.drafted(),
            theirs=("--draft-model", draft, "--num-draft-tokens", str(count)),
            ours=(f"draft_model = {json.dumps(draft)}", f"num_draft_tokens = {count}"),
            check=_has_draft,
        )
        for sample in self.raw["server_draft/8"]["theirs"]:
            if sample["at_once"] > 1:
                fault = f"theirs answered {sample['at_once']} at once: it runs without its draft"
                self._fail("server_draft", RuntimeError(fault))

    async def _compare(
        self,
        model: str,
        works: dict[str, plan.Work],
        *,
        theirs: Sequence[str] = (),
        ours: Sequence[str] = (),
        check: Callable[[Ours], None] = lambda _: None,
    ) -> None:
        """Ask theirs, then ours, and again in every round; with options of theirs and lines of
        ``[engine]`` of ours, which `check` may find wanting. Nothing is written to disk by ours
        while theirs is measured: it has no second tier here."""
        folder = self._model(model)
        peer = Peer(folder, self.scratch / f"t-{model}", *theirs)
        daemon = Ours(folder, self.scratch / f"o-{model}", ["disk_mb = 0", *ours])
        sides = (peer, daemon)
        async with self._guarded(model), running(*sides):
            check(daemon)
            for side in sides:
                await self._one("warm-up", side, plan.warm_up, "warm-up")
            for number in range(self.rounds):
                for name, work in works.items():
                    if number >= plan.FEWER.get(name.split("/")[0], self.rounds):
                        continue
                    for side in sides:
                        await self._one(name, side, work, f"{model}-{name}-{number}")
        self.raw.pop("warm-up", None)

    async def _one(self, name: str, side: AnyServer, work: plan.Work, seed: str) -> None:
        started = time.monotonic()
        try:
            cpu = side.cpu_seconds()
            sample = await work(side.server, seed)
            self.raw[name][side.name].append(sample | {"server_cpu_s": side.cpu_seconds() - cpu})
        except (*_FAULTS, ExceptionGroup) as error:
            self._fail(f"{name} {side.name}", error)
        _say(f"{name} {side.name}: {time.monotonic() - started:.1f} s")

    async def _cached(self) -> None:
        """Conversations, a restart, a turn more, a kill, a turn more; theirs, then ours."""
        folder = self._model("dense")
        for side in (
            Peer(folder, self.scratch / "t-cached"),
            Ours(folder, self.scratch / "o-cached"),
        ):
            async with self._guarded(f"cached {side.name}"), running(side):
                talk = workloads.Conversations(self.size.lengths, "cached")
                await self._turns("cached", side, talk, self.size.lengths.turns)
                await side.restart()
                await self._turns("cached_after_restart", side, talk, 1)
                if isinstance(side, Ours):  # theirs keeps nothing on disk
                    await asyncio.sleep(IDLE_BEFORE_KILL)
                await side.kill()
                await self._turns("cached_after_kill", side, talk, 1)

    async def _turns(
        self, name: str, side: AnyServer, talk: workloads.Conversations, count: int
    ) -> None:
        await self._one(name, side, lambda server, _: talk.turns(server, count), "")

    def _raw_scaling(self) -> None:
        self._program("raw", "benchmarks.engine_raw", str(self._model("dense")))

    def _fuzz(self) -> None:
        self._program("fuzz", "benchmarks.engine_fuzz", "--json", "--requests", str(self.size.fuzz))

    def profile(self) -> Any:
        """Return where a step's time goes, of the engine without sockets."""
        self._program("profile", "benchmarks.engine_profile", str(self._model("dense")))
        return self.raw.pop("profile", None)

    def _program(self, name: str, module: str, *arguments: str) -> None:
        """Run a program of its own, which prints a JSON object as its last line."""
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                capture_output=True,
                text=True,
                timeout=_PROGRAM,
                check=False,
            )
            if not done.stdout:
                raise RuntimeError(f"exit {done.returncode}: {done.stderr[-2000:]}")
            self.raw[name]["ours"].append(json.loads(done.stdout.splitlines()[-1]))
        except (*_FAULTS, ValueError) as error:
            self._fail(name, error)

    def _model(self, kind: str) -> Path:
        """Return the folder of that model, made when it is needed first."""
        if kind == "embedded":
            return model_folder.resolve("embedded", self.scratch)
        folder = self.scratch / kind
        if kind not in self.models:
            command = [sys.executable, "-m", "benchmarks.engine_models", kind, str(folder)]
            done = subprocess.run(command, capture_output=True, timeout=_PROGRAM, check=True)
            self.models[kind] = json.loads(done.stdout)
        return folder

    @asynccontextmanager
    async def _guarded(self, what: str) -> AsyncGenerator[None]:
        """A context in which a server that does not start fails that part alone."""
        try:
            yield
        except _FAULTS as error:
            self._fail(what, error)

    def _fail(self, what: str, error: BaseException) -> None:
        causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        self.failed[what] = "; ".join(f"{type(one).__name__}: {one}"[:1500] for one in causes)
        _say(f"{what}: {self.failed[what]}")


def _has_draft(ours: Ours) -> None:
    """Raise `RuntimeError` when our engine runs without its draft model."""
    present = ours.status()["engine"]["draft_model"]
    if not present["name"]:
        raise RuntimeError(f"ours runs without its draft model: {present['error']}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
