"""The benchmarks' own logic: what is measured is what is promised."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import common, isolation, workload
from benchmarks.scripted_model import step
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    Generate,
    ToolMessage,
    UserMessage,
)
from punie_protocol.testing.script import Call, Say, Wait


def asked(*messages: AnyChatMessage) -> Generate:
    return Generate(
        request_id=1,
        client_id="c",
        conversation_id="s",
        priority=Priority.INTERACTIVE,
        messages=[*messages],
    )


def test_the_work_is_what_the_promise_says(tmp_path: Path) -> None:
    root = workload.make_project(tmp_path / "project")
    calls = [call for one in workload.work(root) for call in one]
    counts = Counter(name for name, _ in calls)
    assert (counts["read_file"], counts["search"]) == (20, 5)
    assert counts["edit_file"] + counts["write_file"] == 2
    indexed = {given.get("path") for name, given in calls if name == "symbols"}
    assert {"json", "asyncio"} <= indexed
    for name, given in calls:
        assert name != "read_file" or (root / given["path"]).is_file()


def test_the_scripted_model_does_what_the_prompt_says() -> None:
    steps = [[["read_file", {"path": "a"}], ["wait", {"seconds": 2}]], [["symbols", {}]]]
    prompt = UserMessage(text=json.dumps(steps))
    answered = AssistantMessage(text="")
    result = ToolMessage(call_id="1", name="read_file", text="x")
    assert step(asked(prompt)).actions == (Call("read_file", {"path": "a"}), Wait(2))
    assert step(asked(prompt, answered, result)).actions == (Call("symbols", {}),)
    assert step(asked(prompt, answered, result, answered)).actions == (Say("done"),)
    before = UserMessage(text=json.dumps([]))
    assert step(asked(before, answered, prompt)).actions[0] == Call("read_file", {"path": "a"})


def test_a_percentile_is_the_nearest_rank() -> None:
    samples = [float(value) for value in range(1, 101)]
    assert common.percentile(samples, 95) == 95
    assert common.percentile([3.0, 1.0], 50) == 1
    assert common.percentile([7.0], 95) == 7


@pytest.mark.parametrize(
    ("result", "over"),
    [
        ({"process_mb": 25.0, "parallel_speedup": 1.5}, {}),
        (
            {"process_mb": 25.1, "parallel_speedup": 1.4},
            {"process_mb": 25.1, "parallel_speedup": 1.4},
        ),
        ({"spawn_ms": 1001.0}, {"spawn_ms": 1001.0}),
    ],
)
def test_what_breaks_a_promise_is_named(result: dict[str, float], over: dict[str, float]) -> None:
    assert isolation.over_target(result) == over
