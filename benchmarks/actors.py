"""A call into another process: our frames beside the actors of others, in one run.

``python -m benchmarks.actors --json [--peers DIR] [--rounds N]``. The same 100 bytes there and
back, the same number of calls, one contender after the other in each round, each round in fresh
processes. The peers are installed into an environment of their own in DIR, which is kept; one that
cannot be installed or does not run is named with its reason in ``failed``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import common
from benchmarks.actor_calls import PAYLOAD
from benchmarks.actor_ours import OURS
from benchmarks.actor_peers import PEERS

PINNED: Final = {"ray": "2.60.0", "xoscar": "0.12.2", "distributed": "2026.8.0"}
BATCH: Final = 500
"""Calls under way at once when throughput is measured."""
INSTALL_TIMEOUT: Final = 600.0
ROUND_TIMEOUT: Final = 180.0
_ROOT: Final = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A contender that gives no figures, and why."""


def main() -> None:
    """Measure and print."""
    options = _arguments()
    environments = Environments(options.peers)
    contenders = [*OURS, *PEERS]
    runs: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for _ in range(options.rounds):
        for name in contenders:
            if name in failed:
                continue
            try:
                samples = one_round(name, options.calls, environments)
                runs.setdefault(name, []).append(samples)
            except Failed as error:
                if name in OURS:
                    raise
                failed[name] = str(error)
                sys.stderr.write(f"{name}: {error}\n")
    common.finish(figures(runs, failed, options), as_json=options.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON alone, as the last line")
    parser.add_argument("--calls", type=int, default=2000, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=_ROOT / ".tools" / "peers", metavar="DIR")
    return parser.parse_args()


class Environments:
    """The Python of each contender. The peers' are made when first needed, one a distribution, so
    that one that cannot be installed takes no other along."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: dict[str, Path] = {}

    def python(self, contender: str) -> Path:
        """Return the interpreter to run a contender with. Raises `Failed`."""
        distribution = PEERS[contender][1] if contender in PEERS else ""
        if not distribution:
            return Path(sys.executable)
        if distribution not in self._ready:
            self._ready[distribution] = self._make(distribution)
        return self._ready[distribution]

    def _make(self, distribution: str) -> Path:
        wanted = f"{distribution}=={PINNED[distribution]}"
        place = self._folder / wanted
        python = place / "bin" / "python"
        if not python.exists():
            _uv("venv", "--python", sys.executable, str(place))
        _uv("pip", "install", "--quiet", "--python", str(python), wanted)
        return python


def _uv(*words: str) -> None:
    """Run the checkout's own uv. Raises `Failed` with what it says."""
    command = [sys.executable, str(_ROOT / "scripts" / "bootstrap"), "uv", *words]
    _run(command, INSTALL_TIMEOUT, {"HOME": str(Path.home())})


def one_round(name: str, calls: int, environments: Environments) -> dict[str, Any]:
    """Return the samples of one contender in processes, and a home, of its own. Raises
    `Failed`."""
    module = "actor_ours" if name in OURS else "actor_peers"
    python = str(environments.python(name))
    command = [python, "-m", f"benchmarks.{module}", name, str(calls), str(BATCH)]
    with tempfile.TemporaryDirectory(prefix="punie-", ignore_cleanup_errors=True) as folder:
        places = dict.fromkeys(("HOME", "TMPDIR", "RAY_TMPDIR"), folder)
        return json.loads(_run(command, ROUND_TIMEOUT, places).splitlines()[-1])


def _run(command: list[str], timeout: float, places: Mapping[str, str]) -> str:
    environment = {"PATH": os.environ["PATH"], **places}
    environment |= {name: value for name, value in os.environ.items() if _is_of_uv(name)}
    try:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no end within {timeout:g} s: {' '.join(command)}") from None
    if done.returncode:
        raise Failed(f"exit {done.returncode}: {' / '.join(_last(done.stderr))}")
    return done.stdout


def _is_of_uv(name: str) -> bool:
    return name.startswith(("UV_", "PIP_", "SSL_CERT")) or name.lower().endswith("_proxy")


def _last(text: str) -> Iterator[str]:
    return (line.strip() for line in text.strip().splitlines()[-3:])


def figures(
    runs: dict[str, list[dict[str, Any]]], failed: dict[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of each contender that ran, then their raw samples."""
    result: dict[str, Any] = {}
    for name, rounds in runs.items():
        trips = [one for done in rounds for one in done["round_trip_us"]]
        key = name.replace("-", "_")
        result[f"{key}_p50_us"] = common.median(trips)
        result[f"{key}_p95_us"] = common.percentile(trips, 95)
        if rates := [one for done in rounds for one in done["calls_per_s"]]:
            result[f"{key}_calls_per_s"] = round(common.median(rates))
    return result | {
        "payload_bytes": len(PAYLOAD),
        "in_flight": BATCH,
        "calls": options.calls,
        "rounds": options.rounds,
        "versions": {name: rounds[0]["version"] for name, rounds in runs.items()},
        "failed": failed,
        "samples": runs,
    }


if __name__ == "__main__":
    main()
