"""Right answers about real trees, through every process, at both isolation levels."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.cli import Punie

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("answers")]


def numbers(answer: str) -> set[int]:
    """Return the integers of an answer."""
    return {int(digits) for digits in re.findall(r"\d+", answer)}


def words(answer: str) -> set[str]:
    """Return the names, dotted and with slashes, of an answer."""
    return {word.strip(".:,") for word in re.findall(r"[\w./-]+", answer)}


def tools(report: dict) -> set[str]:
    """Return the names of the tools that ran well."""
    return {call["name"] for call in report["tool_calls"] if call["ok"]}


@pytest.mark.parametrize(
    ("tree", "base"),
    [("json", "ValueError"), ("asyncio", "Exception"), ("asyncio", "RuntimeError")],
)
def test_classes_that_inherit(
    user: Punie, projects: Path, isolation: str, tree: str, base: str
) -> None:
    question = f"Find all classes that inherit from {base}"
    report = user.ask(projects / tree, question, "--isolation", isolation)
    expected = trees.subclasses(projects / tree, base)
    assert expected
    assert expected <= words(report["answer"]), report["answer"]
    assert tools(report) == {"execute_code", "search"}
    assert report["isolation"] == isolation


@pytest.mark.parametrize("tree", ["json", "asyncio", "mlx_lm"])
def test_how_many_files(user: Punie, projects: Path, isolation: str, tree: str) -> None:
    report = user.ask(projects / tree, "How many Python files are there?", "--isolation", isolation)
    assert len(trees.files(projects / tree, ".py")) in numbers(report["answer"])
    assert "list_files" in tools(report)


@pytest.mark.parametrize(
    ("tree", "kind", "suffix"),
    [("json", "Python", ".py"), ("asyncio", "Python", ".py"), ("mlx_lm", "Markdown", ".md")],
)
def test_find_files(
    user: Punie, projects: Path, isolation: str, tree: str, kind: str, suffix: str
) -> None:
    report = user.ask(projects / tree, f"Find all {kind} files", "--isolation", isolation)
    assert trees.files(projects / tree, suffix) <= words(report["answer"]), report["answer"]


@pytest.mark.parametrize("page", ["LORA.md", "SERVER.md"])
def test_title_of_a_page(user: Punie, projects: Path, isolation: str, page: str) -> None:
    tree = projects / "mlx_lm"
    report = user.ask(tree, f"What is the title of {page}?", "--isolation", isolation)
    assert trees.title(tree / page) in report["answer"]
    assert "read_file" in tools(report)


@pytest.mark.parametrize(("tree", "word"), [("json", "loads"), ("asyncio", "uvloop")])
def test_grep_a_word(user: Punie, projects: Path, isolation: str, tree: str, word: str) -> None:
    report = user.ask(projects / tree, f"grep {word}", "--isolation", isolation)
    expected = trees.lines_with(projects / tree, word)
    if expected:
        assert expected in numbers(report["answer"]), report["answer"]
    else:
        assert "no" in report["answer"].lower()
    assert "search" in tools(report)


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is dependency injection?", "injection"),
        ("What is the difference between an ORM and raw SQL?", "SQL"),
        ("What is a Protocol in Python typing?", "methods"),
        ("Hello", ""),
    ],
)
def test_direct_answers_call_no_tool(user: Punie, projects: Path, question: str, word: str) -> None:
    report = user.ask(projects / "json", question)
    assert word in report["answer"]
    assert report["answer"].strip()
    assert report["tool_calls"] == []


def test_nested_calls_name_their_parent(user: Punie, projects: Path) -> None:
    report = user.ask(projects / "json", "How many Python files are there?")
    outer, inner = report["tool_calls"]
    assert (outer["name"], inner["name"]) == ("execute_code", "list_files")
    assert inner["parent"] == outer["id"]
    assert outer["parent"] is None
    assert inner["duration_ms"] <= outer["duration_ms"]
    assert "list_files" in outer["arguments"]["code"]
    assert inner["arguments"]["pattern"] == "*.py"


def test_report_has_the_documented_fields(user: Punie, projects: Path) -> None:
    report = user.ask(projects / "json", "How many Python files are there?")
    assert report["project"] == str(projects / "json")
    assert report["model"] == "embedded"
    assert report["usage"]["input_tokens"] > report["usage"]["cached_tokens"] >= 0
    assert report["usage"]["output_tokens"] > 0
    timings = report["timings_ms"]
    assert set(timings) == {
        "total",
        "queue",
        "ttft",
        "prefill",
        "decode",
        "tools",
        "permission_wait",
        "framework",
    }
    parts = sum(value for name, value in timings.items() if name not in ("total", "ttft"))
    assert 0.95 * timings["total"] <= parts <= 1.05 * timings["total"] + 5
    assert timings["decode"] > 0


def test_two_projects_at_the_same_time(user: Punie, projects: Path, isolation: str) -> None:
    asked: dict[str, subprocess.Popen[str]] = {
        tree: user.popen(
            "ask",
            "-C",
            projects / tree,
            "--isolation",
            isolation,
            "How many Python files are there?",
        )
        for tree in ("json", "asyncio")
    }
    for tree, process in asked.items():
        answer, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert len(trees.files(projects / tree, ".py")) in numbers(answer)


def test_isolation_is_what_was_asked_for(user: Punie, projects: Path) -> None:
    for tree in ("json", "asyncio"):
        user.ask(projects / tree, "Hello", "--isolation", "interpreter")
    user.ask(projects / "mlx_lm", "Hello", "--isolation", "process")
    workers = [
        sorted(Path(root).name for root in worker["projects"])
        for worker in user.status()["workers"]
    ]
    assert ["asyncio", "json"] in workers
    assert ["mlx_lm"] in workers


def test_a_second_question_refers_to_the_first(user: Punie, projects: Path) -> None:
    first = user.ask(projects / "json", "How many Python files are there?")
    second = user.ask(projects / "json", "Which ones?", "--session", first["session_id"])
    assert trees.files(projects / "json", ".py") <= words(second["answer"]), second["answer"]
    third = user.ask(projects / "json", "And Markdown files?", "--last")
    assert second["session_id"] == third["session_id"] == first["session_id"]
    assert "no Markdown files" in third["answer"]


def test_a_conversation_moves_to_another_level(user: Punie, projects: Path) -> None:
    tree = projects / "json"
    first = user.ask(tree, "How many Python files are there?", "--isolation", "process")
    for level in ("interpreter", "process"):
        report = user.ask(
            tree, "Which ones?", "--session", first["session_id"], "--isolation", level
        )
        assert report["isolation"] == level
        assert trees.files(tree, ".py") <= words(report["answer"]), report["answer"]


def test_a_conversation_outlives_the_daemon(user: Punie, projects: Path) -> None:
    first = user.ask(projects / "json", "How many Python files are there?")
    assert user.run("down").returncode == 0
    second = user.ask(projects / "json", "Which ones?", "--session", first["session_id"])
    assert trees.files(projects / "json", ".py") <= words(second["answer"]), second["answer"]


def test_text_goes_to_stdout_and_nothing_else(user: Punie, projects: Path) -> None:
    result = user.run(
        "ask", "-C", projects / "json", "Find all classes that inherit from ValueError"
    )
    assert result.returncode == 0
    assert "JSONDecodeError" in result.stdout
    assert result.stdout.endswith("\n")
    assert "punie:" not in result.stdout
    assert "\x1b" not in result.stdout + result.stderr


def test_jsonl_is_one_event_a_line(user: Punie, projects: Path) -> None:
    result = user.run(
        "ask", "-C", projects / "json", "--format", "jsonl", "How many Python files are there?"
    )
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "result"
    assert {"tool_call", "tool_result", "text"} <= set(kinds)
    text = "".join(event["text"] for event in events if event["type"] == "text")
    assert text.endswith(events[-1]["answer"])


def test_a_question_from_standard_input(user: Punie, projects: Path) -> None:
    result = user.run("ask", "-C", projects / "json", "-", input="What is dependency injection?")
    assert result.returncode == 0, result.stderr
    assert "injection" in result.stdout


def test_standard_input_is_context(user: Punie, projects: Path) -> None:
    question = "How many Python files are there?"
    pasted = "Context:\nparser = JSONDecoder()\n"
    result = user.run("ask", "-C", projects / "json", question, input=pasted)
    assert result.returncode == 0, result.stderr
    assert len(trees.files(projects / "json", ".py")) in numbers(result.stdout), result.stdout
