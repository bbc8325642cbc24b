"""Tool calls through the engine: what a client gets of an answer that ends inside a call."""

from pathlib import Path

import pytest

from punie_model_host.engine import Engine
from punie_model_host.engine_messages import Emission, Key, LoadCommand, Submit, ToClient
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import ModelFault
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    StopReason,
    TextDelta,
    ToModelClient,
    ToolCall,
)
from punie_protocol.messages.to_model_host import Generate, Sampling, ToolSchema, UserMessage
from tests.support.tiny_model import make_tiny_model

SAYS = [
    "I count.\n",
    "<tool_call>\n<function=count>\n<parameter=n>\n",
    "12",
    "\n</parameter>\n</function>\n</tool_call>",
    "\n<tool_call>\n<function=Count>\n",
    "<parameter=n>\n3\n",
    "</parameter>\n</function>",
]
COUNT = ToolSchema(
    name="count",
    description="",
    parameters='{"type": "object", "properties": {"n": {"type": "integer"}}}',
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "counts", says=SAYS)
    make_tiny_model(folder / "babbles", says=["<tool_call>", "\nread it"])
    return folder


def ask(models: Path, model: str, max_tokens: int) -> list[ToModelClient]:
    """Return what the client gets of an answer of at most so many tokens."""
    emissions: list[Emission] = []
    engine = Engine(models, EngineSettings(memory_mb=64), emissions.append)
    engine.handle(LoadCommand(-1, model))
    request = Generate(
        request_id=1,
        client_id="c",
        conversation_id="v",
        priority=Priority.INTERACTIVE,
        messages=[UserMessage(text="hi")],
        sampling=Sampling(max_tokens=max_tokens),
        tools=[COUNT],
    )
    engine.handle(Submit(Key(1, 1), request, 0.0))
    steps = 0
    while engine.has_work and (steps := steps + 1) < 1000:
        engine.step()
    return [e.message for e in emissions if isinstance(e, ToClient) and e.key == Key(1, 1)]


def calls_of(answer: list[ToModelClient]) -> list[tuple[str, str]]:
    return [(m.name, m.arguments) for m in answer if isinstance(m, ToolCall)]


@pytest.mark.parametrize(
    ("max_tokens", "calls", "reason"),
    [
        (1, 0, StopReason.LENGTH),
        (3, 0, StopReason.LENGTH),
        (4, 1, StopReason.TOOL_CALLS),
        (5, 1, StopReason.LENGTH),
        (6, 1, StopReason.LENGTH),
        (7, 2, StopReason.TOOL_CALLS),
        (50, 2, StopReason.TOOL_CALLS),
    ],
)
def test_a_call_that_the_limit_cuts_is_flagged_and_not_made(
    models: Path, max_tokens: int, calls: int, reason: StopReason
) -> None:
    answer = ask(models, "counts", max_tokens)
    assert calls_of(answer) == [("count", '{"n": 12}'), ("count", '{"n": 3}')][:calls]
    assert "".join(m.text for m in answer if isinstance(m, TextDelta)).strip() == "I count."
    assert isinstance(answer[-1], Finished)
    assert answer[-1].stop_reason is reason


def test_a_call_beyond_repair_is_a_fault_of_the_model(models: Path) -> None:
    answer = ask(models, "babbles", 50)
    assert isinstance(answer[-1], Failed)
    assert isinstance(answer[-1].error, ModelFault)
    assert "no call in the tool call" in answer[-1].error.message
    assert "read it" in answer[-1].error.message
