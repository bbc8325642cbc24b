"""The symbol index: the first look at a package, a repeated one, and when a change is seen.

``python -m benchmarks.symbols --json``. In-process, with a project half of its own, on packages
of this environment.
"""

import asyncio
import importlib.util
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import common
from punie_protocol.tools_code import Symbols, SymbolsResult
from punie_workers.halves import Abandoned, Halves
from punie_workers.symbol_tools import SymbolTools

PACKAGES: Final = {
    "asyncio": "run_until_complete",
    "pydantic_ai": "ModelRequest",
    "openai": "AsyncOpenAI",
}
"""Packages, and a name that each defines."""
DEADLINE: Final = 30.0


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__, samples=5)
    result: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    for package, name in PACKAGES.items():
        figures, raw = asyncio.run(measure(package, name, options.samples))
        result |= {f"{package}_{key}": value for key, value in figures.items()}
        samples[package] = raw
    common.finish(result | {"samples": samples}, as_json=options.json)


async def measure(package: str, name: str, samples: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the medians and raw samples of one package; milliseconds but for files."""
    raw: dict[str, list[float]] = {
        "first_ms": [],
        "name_ms": [],
        "references_ms": [],
        "seen_ms": [],
    }
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as folder:
        root = Path(folder) / package
        shutil.copytree(location(package), root, ignore=shutil.ignore_patterns("__pycache__"))
        for _ in range(samples):
            async with Index(root) as index:
                raw["first_ms"].append(await index.timed(Symbols(name=name)))
                raw["name_ms"].append(await index.timed(Symbols(name=name)))
                raw["references_ms"].append(await index.timed(Symbols(name=name, references=True)))
                raw["seen_ms"].append(await index.change_seen(len(raw["seen_ms"])))
        files = sum(1 for _ in root.rglob("*.py"))
    return {key: common.median(values) for key, values in raw.items()} | {"files": files}, raw


def location(package: str) -> Path:
    """Return the folder of an importable package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{package} is not installed")
    return Path(spec.origin).parent


class Index:
    """The symbols of one folder, from open to close."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._halves = Halves(str(root), Abandoned(lambda: None))
        self._tools = SymbolTools(str(root), self._halves)

    async def __aenter__(self) -> Index:
        await self._halves.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._tools.close()
        self._halves.stop()
        await asyncio.to_thread(self._halves.join, DEADLINE)

    async def timed(self, wanted: Symbols) -> float:
        """Return the milliseconds of a query that has to find something."""
        started = time.perf_counter()
        found = await self._find(wanted)
        if not found.symbol_count:
            raise RuntimeError(f"nothing found for {wanted}")
        return (time.perf_counter() - started) * 1000

    async def change_seen(self, number: int) -> float:
        """Return the milliseconds from somebody's new file to the answer that has its class."""
        name = f"Brand{number}New"
        started = time.perf_counter()
        (self._root / f"brand_new_{number}.py").write_text(f"class {name}:\n    pass\n")
        while not (await self._find(Symbols(name=name))).symbol_count:
            if time.perf_counter() - started > DEADLINE:
                raise RuntimeError(f"{name} was not seen within {DEADLINE:g} s")
            await asyncio.sleep(0.001)
        return (time.perf_counter() - started) * 1000

    async def _find(self, wanted: Symbols) -> SymbolsResult:
        result = await self._tools.run(wanted)
        assert isinstance(result, SymbolsResult)
        return result


if __name__ == "__main__":
    main()
