"""What somebody who waits for a model is told."""

import pytest

from punie_protocol.engine import EngineStatus
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_protocol.messages.to_supervisor import Load, ModelState
from punie_supervisor.model_text import loading, waiting

MB = 1024 * 1024
OLD = ModelInfo(
    name="old",
    folder="/m/old",
    context_window=1,
    prompt_style=PromptStyle.TOOLS,
    tool_call_format="x",
    max_output_tokens=1,
)


def state(load: Load = Load.LOADING, *, done: int = 0, total: int = 0) -> ModelState:
    return ModelState(
        request_id=1, state=load, name="new", done_bytes=done, total_bytes=total, model=OLD
    )


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, 0, "loading model new"),
        (0, 6 * MB, "loading model new 0.0/6.0 MB"),
        (3 * MB, 6 * MB, "loading model new 3.0/6.0 MB"),
        (3_100_000_000, 17_200_000_000, "loading model new 3.1/17.2 GB"),
    ],
)
def test_bytes_in_a_unit_that_suits_them(done: int, total: int, text: str) -> None:
    assert loading(state(done=done, total=total), None) == (text, done, total)


def test_requests_come_before_the_first_byte() -> None:
    busy = EngineStatus(running=1, prefilling=1, queued=5)
    told = loading(state(total=6 * MB), busy)
    assert told == ("waiting for 2 requests on model old", 0, 0)
    assert loading(state(done=MB, total=6 * MB), busy) == (
        "loading model new 1.0/6.0 MB",
        MB,
        6 * MB,
    )
    assert loading(state(total=6 * MB), EngineStatus(queued=5)) == (
        "loading model new 0.0/6.0 MB",
        0,
        6 * MB,
    )


@pytest.mark.parametrize("load", [Load.READY, Load.FAILED])
def test_nothing_is_loaded(load: Load) -> None:
    assert loading(state(load), EngineStatus(running=2)) is None
    assert loading(None, None) is None


def test_one_and_many() -> None:
    assert waiting(1, "turn", "m") == "waiting for 1 turn on model m"
    assert waiting(2, "turn", "m") == "waiting for 2 turns on model m"
