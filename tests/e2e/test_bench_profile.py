"""`punie bench profile` with the daemon and the embedded model."""

import json
from pathlib import Path

import pytest

from punie_protocol.messages.common import Timings
from tests.support.cli import Punie

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("profile")]

PARTS = ("queue", "prefill", "decode", "tools", "permission_wait", "framework")


def test_every_part_of_every_turn(user: Punie) -> None:
    done = user.run("bench", "profile", "--scratch", "--runs", "2", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["runs"], found["failed"]) == ("embedded", 2, 0)
    assert found["settings"]["speculation"] == "auto"
    assert Path(found["project"]).is_dir()
    assert [query["kind"] for query in found["queries"]] == ["direct"] * 2 + ["tools"] * 3
    for query in found["queries"]:
        assert [sample["run"] for sample in query["samples"]] == [1, 2]
        for sample in query["samples"]:
            timings = sample["timings_ms"]
            assert set(timings) == set(Timings.__struct_fields__)
            assert sum(timings[part] for part in PARTS) == pytest.approx(timings["total"], abs=0.1)
            assert bool(sample["tools"]) == bool(timings["tools"]) == (query["kind"] == "tools")
            assert sample["steps"] == (2 if query["kind"] == "tools" else 1)
            assert sample["usage"]["output_tokens"] > 0
            assert sample["decode_tok_s"] > 0
        first, second = query["samples"]
        assert query["first"] == first["timings_ms"]
        assert query["warm"] == second["timings_ms"]
        assert second["cached_share"] > 0.5, "what was asked before is cached"
    answers = {query["name"]: query["samples"][0]["answer"] for query in found["queries"]}
    assert "8" in answers["count"]
    assert "PricesError" in answers["subclasses"]
    assert "run 2 of 2" in done.stderr


def test_a_person_gets_a_table_of_his_own_project(user: Punie, projects: Path) -> None:
    done = user.run("bench", "profile", "-C", projects / "json", "--runs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(projects / "json") in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    names = ["concept", "comparison", "count", "subclasses", "grep"]
    assert [row[0] for row in rows if row[2:3] == ["first"]] == names
    assert not [row for row in rows if row[2:3] == ["warm"]]
    assert any(line.startswith("total ") for line in done.stdout.splitlines())


def test_a_question_that_fails_is_shown_and_ends_with_1(user: Punie) -> None:
    args = ("bench", "profile", "--scratch", "--runs", "1", "--timeout", "0.001")
    done = user.run(*args)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 5
    assert "no complete answer within 0.001 s" in failed[0]
    again = user.run(*args, "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["failed"] == 5


@pytest.mark.parametrize(
    "args", [["--runs", "0"], ["--timeout", "0"], ["--scratch", "-C", "."], ["-C", "/nowhere"]]
)
def test_what_makes_no_sense_is_refused(user: Punie, args: list[str]) -> None:
    done = user.run("bench", "profile", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
