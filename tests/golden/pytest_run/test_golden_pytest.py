"""What pytest reports, as recorded, and what is made of it: in the sandbox, by a real pytest."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from punie_protocol.tools_commands import PytestRunResult
from punie_workers.interp import pytest_output
from punie_workers.interp.failures import Failure
from tests.support.golden_pytest import FILES, PROJECTS, projects, run, steady

STATUSES = {"passing": 0, "none": 5, "all_skipped": 5, "collection": 2, "interrupted": 2}
STATUSES |= {"internal": 3}
"""With what status a run ended whose tests did not just fail (1)."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all projects."""
    return projects(tmp_path_factory.mktemp("golden").resolve() / "project")


def expected(name: str) -> dict[str, Any]:
    return msgspec.json.decode((FILES / f"{name}.result.json").read_bytes())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", PROJECTS)
def test_pytest_reports_what_is_recorded(name: str, root: Path) -> None:
    _, result = asyncio.run(run(name, root))
    assert msgspec.json.decode(result) == expected(name)


@pytest.mark.parametrize("file", sorted(FILES.glob("*.xml")), ids=lambda file: file.stem)
def test_a_recorded_report_is_read(file: Path) -> None:
    found, recorded = read(file), expected(file.stem)
    if "message" in found:  # pytest's own words, which follow, are not in the report
        recorded["message"] = recorded["message"][: len(found["message"])]
    assert found == recorded


def read(file: Path) -> dict[str, Any]:
    """Return what the project half makes of a report: a result or an error."""
    try:
        found = pytest_output.pytest_run(file.read_bytes(), STATUSES.get(file.stem, 1), 100, 0.0)
    except Failure as failure:
        return {"kind": failure.kind, "message": failure.message}
    result = msgspec.json.encode(msgspec.convert(found, PytestRunResult))
    return msgspec.json.decode(steady(result, Path("/nowhere")))
