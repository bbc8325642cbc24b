"""The wall round each request: whatever one of them is, the others and the engine go on.

Real weights and real MLX, no sockets; `tests/faults/test_engine_fuzz.py` fires the same and worse
at the process.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import mlx.core as mx
import pytest

from punie_model_host.answer import Call
from punie_model_host.arguments import convert
from punie_model_host.desk import MAX_LIVE, Desk
from punie_model_host.engine import Engine
from punie_model_host.engine_messages import (
    Cancel,
    Emission,
    Key,
    LoadCommand,
    Refused,
    Submit,
    ToClient,
)
from punie_model_host.engine_thread import CAPACITY, EngineThread
from punie_model_host.toolcalls import AnswerParser
from punie_protocol import errors
from punie_protocol.codec import encode_frame
from punie_protocol.engine import EngineSettings
from punie_protocol.messages.common import Priority, Usage
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    TextDelta,
    ToModelClient,
    ToolCall,
)
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    Generate,
    Sampling,
    SystemMessage,
    ToolCallPart,
    ToolMessage,
    ToolSchema,
    UserMessage,
)
from tests.support.tiny_model import END, make_tiny_model

WINDOW = 1024
BROKEN = "z"
"""What the model ``broken`` has no numbers for."""
CALL = [
    "<tool_call>",
    "\n<function=count>\n<parameter=n>\n",
    "12",
    "\n</parameter>\n</function>\n",
    "</tool_call>",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "brief", says=["Hello", " there", "."])
    make_tiny_model(folder / "random", context_window=WINDOW)
    make_tiny_model(folder / "call", says=CALL)
    make_tiny_model(folder / "mute", says=["Hello"])
    (folder / "mute" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    _break(make_tiny_model(folder / "broken"))
    return folder


def _break(folder: Path) -> None:
    """Damage the weights: every prompt with `BROKEN` has keys, values and logits that are NaN."""
    path = folder / "model.safetensors"
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    weights["model.embed_tokens.weight"][ord(BROKEN) - ord("!")] = math.nan
    mx.save_safetensors(str(path), weights, {"format": "mlx"})


class Bench:
    """An engine with what came out of it."""

    def __init__(self, models: Path, model: str) -> None:
        self.emissions: list[Emission] = []
        settings = EngineSettings(memory_mb=64, step_tokens=16)
        self.engine = Engine(models, settings, self.emissions.append)
        self._ids = count(1)
        self.engine.handle(LoadCommand(-1, model))
        self.run()

    def submit(
        self,
        *messages: AnyChatMessage,
        sampling: Sampling | None = None,
        tools: Sequence[ToolSchema] = (),
    ) -> Key:
        key = Key(1, next(self._ids))
        request = Generate(
            request_id=key.request_id,
            client_id="c",
            conversation_id="v",
            priority=Priority.INTERACTIVE,
            messages=list(messages),
            sampling=sampling or Sampling(),
            tools=list(tools),
        )
        self.engine.handle(Submit(key, request, time.perf_counter()))
        return key

    def run(self) -> None:
        for _ in range(100_000):
            if not self.engine.has_work:
                return
            self.engine.step()
        pytest.fail("the engine does not come to an end")

    def ask(
        self,
        *messages: AnyChatMessage,
        sampling: Sampling | None = None,
        tools: Sequence[ToolSchema] = (),
    ) -> list[ToModelClient]:
        key = self.submit(*messages, sampling=sampling, tools=tools)
        self.run()
        return self.of(key)

    def of(self, key: Key) -> list[ToModelClient]:
        return [e.message for e in self.emissions if isinstance(e, ToClient) and e.key == key]


def hi(text: str = "hi") -> UserMessage:
    return UserMessage(text=text)


def text_of(messages: list[ToModelClient]) -> str:
    return "".join(message.text for message in messages if isinstance(message, TextDelta))


def error_of(messages: list[ToModelClient]) -> errors.WireError:
    assert isinstance(messages[-1], Failed), messages[-1]
    return messages[-1].error


def usage_of(messages: list[ToModelClient]) -> Usage:
    assert isinstance(messages[-1], Finished), messages[-1]
    return messages[-1].usage


@pytest.fixture(scope="module")
def one_engine(models: Path) -> Bench:
    return Bench(models, "brief")


@pytest.fixture
def brief(one_engine: Bench) -> Iterator[Bench]:
    """An engine that has seen what other tests did, and answers right after this one too."""
    yield one_engine
    assert text_of(one_engine.ask(hi())) == "Hello there."


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(temperature=NAN), ["temperature", "nan"]),
        (Sampling(temperature=INF), ["temperature", "inf"]),
        (Sampling(top_p=NAN), ["top_p", "nan"]),
        (Sampling(min_p=-0.1), ["min_p", "-0.1", ">= 0"]),
        (Sampling(top_k=-5), ["top_k", "-5", ">= 0"]),
        (Sampling(repetition_penalty=0.0), ["repetition_penalty", "> 0"]),
        (Sampling(presence_penalty=NAN), ["presence_penalty", "nan"]),
        (Sampling(frequency_penalty=3.0), ["frequency_penalty", "3.0", "<= 2"]),
        (Sampling(xtc_probability=1.5), ["xtc_probability", "1.5", "<= 1"]),
        (Sampling(xtc_probability=0.5, xtc_threshold=0.51), ["xtc_threshold", "0.51", "<= 0.5"]),
        (Sampling(xtc_threshold=NAN), ["xtc_threshold", "nan"]),
        (Sampling(logit_bias={10**6: 1.0}), ["logit_bias", "1000000", "0 to "]),
        (Sampling(logit_bias={-1: 1.0}), ["logit_bias", "-1", "0 to "]),
        (Sampling(logit_bias={3: NAN}), ["logit_bias[3]", "nan"]),
        (Sampling(logit_bias=dict.fromkeys(range(1025), 0.0)), ["1025", "1024"]),
        (Sampling(max_tokens=0), ["max_tokens", "0", ">= 1"]),
        (Sampling(max_tokens=-(2**63)), ["max_tokens", ">= 1"]),
        (Sampling(stop=[""]), ["stop[0]", "1 to 256"]),
        (Sampling(stop=["x" * 257]), ["stop[0]", "257", "256"]),
        (Sampling(stop=["x"] * 17), ["17", "16"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_refused_by_name_value_and_limit(
    brief: Bench, sampling: Sampling, words: list[str]
) -> None:
    error = error_of(brief.ask(hi(), sampling=sampling))
    assert isinstance(error, errors.InvalidRequest)
    assert all(word in error.message for word in words), error.message


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=2**62),
        Sampling(top_k=10**6, temperature=1e-4),
        Sampling(max_tokens=2**62),
        Sampling(temperature=5e-324, top_p=5e-324),
        Sampling(temperature=1e-4, xtc_probability=1.0, xtc_threshold=0.5),
        Sampling(seed=-(2**63), temperature=1e-4),
        Sampling(seed=2**64 - 1, temperature=1e-4, min_p=1.0),
    ],
    ids=str,
)
def test_odd_but_clear_arguments_are_taken(brief: Bench, sampling: Sampling) -> None:
    assert text_of(brief.ask(hi(), sampling=sampling)) == "Hello there."


def test_a_conversation_without_messages_and_one_without_tokens(brief: Bench, models: Path) -> None:
    error = error_of(brief.ask())
    assert isinstance(error, errors.InvalidRequest)
    assert "without messages" in error.message
    mute = Bench(models, "mute")
    error = error_of(mute.ask(hi("")))
    assert isinstance(error, errors.InvalidRequest)
    assert "no tokens" in error.message
    assert text_of(mute.ask(hi("x\n"))) == "Hello"


def test_a_prompt_of_one_token(models: Path) -> None:
    mute = Bench(models, "mute")
    for _ in range(2):
        answer = mute.ask(hi("\n"))
        assert text_of(answer) == "Hello"
        assert usage_of(answer) == Usage(input_tokens=1, cached_tokens=0, output_tokens=2)


def test_empty_texts_in_every_place(brief: Bench) -> None:
    empty = ToolCallPart(call_id="", name="", arguments="{}")
    messages = [
        SystemMessage(text=""),
        UserMessage(text=""),
        AssistantMessage(tool_calls=[empty]),
        ToolMessage(call_id="", name="", text=""),
    ]
    tools = [ToolSchema(name="", description="", parameters="{}")]
    assert text_of(brief.ask(*messages, tools=tools)) == "Hello there."


def test_a_prompt_that_the_cache_has_to_its_end(models: Path) -> None:
    bench = Bench(models, "random")
    sampling = Sampling(max_tokens=20)
    answers = [bench.ask(hi("once upon a time"), sampling=sampling) for _ in range(3)]
    assert len({text_of(answer) for answer in answers}) == 1
    usages = [usage_of(answer) for answer in answers]
    assert [usage.cached_tokens for usage in usages[1:]] == [usages[0].input_tokens - 1] * 2


def test_many_that_are_the_same_at_once(models: Path) -> None:
    bench = Bench(models, "random")
    keys = [bench.submit(hi("same"), sampling=Sampling(max_tokens=20)) for _ in range(20)]
    bench.run()
    assert len({text_of(bench.of(key)) for key in keys}) == 1


@pytest.mark.parametrize("size", [WINDOW, 100_000_000])
def test_a_conversation_over_the_window_is_refused_unread(models: Path, size: int) -> None:
    bench = Bench(models, "random")
    error = error_of(bench.ask(hi("x" * size)))
    assert isinstance(error, errors.ContextOverflow)
    assert error.limit == WINDOW
    assert error.tokens >= WINDOW
    assert str(error.tokens) in error.message
    assert str(WINDOW) in error.message
    assert usage_of(bench.ask(hi(), sampling=Sampling(max_tokens=3))).output_tokens == 3


def test_giant_parts_of_other_kinds_are_refused(brief: Bench) -> None:
    huge = "x" * 10_000_000
    call = ToolCallPart(call_id="1", name="f", arguments=f'{{"a": "{huge}"}}')
    tool = ToolSchema(name="f", description=huge, parameters="{}")
    schema = ToolSchema(name="f", description="", parameters=f'{{"title": "{huge}"}}')
    named = ToolSchema(name=huge, description="", parameters="{}")
    answers = [
        brief.ask(hi(), AssistantMessage(tool_calls=[call])),
        brief.ask(hi(), AssistantMessage(thinking=huge)),
        brief.ask(hi(), ToolMessage(call_id=huge, name="f", text="")),
        *[brief.ask(hi(), tools=[each]) for each in (tool, schema, named)],
    ]
    for answer in answers[:1] + answers[3:]:
        assert isinstance(error_of(answer), errors.ContextOverflow)
    assert text_of(answers[1]) == text_of(answers[2]) == "Hello there."  # no part of the template


@pytest.mark.parametrize(
    "text",
    ["\x00", "\ufffe\U0010ffff", END, "{{ 1 / 0 }}", "\u202e\u200d" * 50, "<tool_call>"],
    ids=ascii,
)
def test_any_text_is_text(brief: Bench, text: str) -> None:
    assert text_of(brief.ask(hi(text))) == "Hello there."


@pytest.mark.parametrize(
    "arguments",
    [
        *["", "{", "[]", "null", '{"a": NaN}', '{"a": 1} x', '{"a": "\\ud800"}', "\x00"],
        *['{"a": ' * 100_000, '{"a": ' * 900 + "1" + "}" * 900, '{"a": ' + "9" * 5000 + "}"],
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_json_that_is_none_is_refused_in_calls_and_in_tools(brief: Bench, arguments: str) -> None:
    part = ToolCallPart(call_id="7", name="t", arguments=arguments)
    tool = ToolSchema(name="t", description="", parameters=arguments)
    calls = brief.ask(AssistantMessage(tool_calls=[part]))
    for answer in (calls, brief.ask(hi(), tools=[tool])):
        error = error_of(answer)
        assert isinstance(error, errors.InvalidRequest | errors.ContextOverflow), error


@pytest.mark.parametrize(
    "schema",
    [
        *['{"type": 5}', '{"type": {"integer": 1}}', '{"type": [5, null, []]}', '{"anyOf": 1}'],
        *['{"anyOf": {"a": 1}}', '{"oneOf": [1, null, {"type": 5}]}', '{"type": null}', "[]", "1"],
    ],
)
def test_a_schema_that_is_none_costs_nobody_the_call(models: Path, schema: str) -> None:
    parameters = f'{{"type": "object", "properties": {{"n": {schema}}}}}'
    tools = [ToolSchema(name="count", description="", parameters=parameters)]
    answer = Bench(models, "call").ask(hi(), tools=tools)
    assert usage_of(answer).output_tokens == 6


def test_a_schema_that_is_one_still_counts() -> None:
    assert convert("12", {"type": "integer"}) == 12
    assert convert("12", {"anyOf": [{"type": "null"}, {"type": "number"}]}) == 12
    assert convert("12", {"type": 5}) == "12"


def test_a_call_with_half_a_character_can_be_sent() -> None:
    parser = AnswerParser({})
    body = '{"name": "f\\ud800", "arguments": {"\\udfff": ["\\ud801"]}}'
    (call,) = parser.feed(f"<tool_call>{body}</tool_call>") + parser.finish(cut=False)
    assert isinstance(call, Call)
    message = ToolCall(request_id=1, call_id="c", name=call.name, arguments=call.arguments)
    assert encode_frame(message)
    assert (call.name, call.arguments) == ("f?", '{"?": ["?"]}')


def plain_request() -> Generate:
    return Generate(
        request_id=1,
        client_id="c",
        conversation_id="v",
        priority=Priority.INTERACTIVE,
        messages=[hi()],
    )


def test_refusals_leave_room_for_requests(tmp_path: Path) -> None:
    """A step may be long, and a client that is refused may come again at once, many times."""
    with asyncio.Runner() as runner:
        thread = EngineThread(
            tmp_path, EngineSettings(), None, runner.get_loop(), lambda emission: None
        )
        taken = sum(thread.post(Refused("greedy", "invalid_request")) for _ in range(CAPACITY))
        assert taken < CAPACITY - 2 * MAX_LIVE
        for number in range(MAX_LIVE):
            assert thread.post(Submit(Key(1, number), plain_request(), 0.0))
            assert thread.post(Cancel(Key(1, number)))


def test_a_request_that_finds_no_room_is_told_so() -> None:
    told: list[ToModelClient] = []

    class Told:
        def send(self, message: ToModelClient) -> None:
            told.append(message)

    desk = Desk(lambda command: False)
    desk.submit(desk.enter(Told()), plain_request())
    assert isinstance(error_of(told), errors.Overloaded)
    assert desk.live == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_numbers_ends_alone(models: Path, temperature: float) -> None:
    """Its keys and values are NaN too: nobody who is beside it, or comes after it, may see them."""
    bench = Bench(models, "broken")
    sampling = Sampling(temperature=temperature, seed=1, max_tokens=30)
    alone = text_of(bench.ask(hi("abc"), sampling=sampling))
    bad = "a" * 300 + BROKEN
    for _ in range(3):
        keys = [bench.submit(hi(text), sampling=sampling) for text in ("abc", bad, "abc", bad)]
        bench.run()
        for key in keys[1::2]:
            error = error_of(bench.of(key))
            assert isinstance(error, errors.ModelFault)
            assert "no numbers" in error.message
        assert [text_of(bench.of(key)) for key in keys[::2]] == [alone] * 2
        assert text_of(bench.ask(hi("abc"), sampling=sampling)) == alone


def test_a_prefix_of_a_broken_prompt_is_not_broken(models: Path) -> None:
    """What was computed before the token without numbers may be kept, nothing behind it."""
    bench, cold = Bench(models, "broken"), Bench(models, "broken")
    sampling = Sampling(max_tokens=10)
    start = "a shared beginning, " * 5
    assert isinstance(error_of(bench.ask(hi(start + BROKEN + start))), errors.ModelFault)
    for text in (start, start + "b", start + "y" + start):
        warm, fresh = (each.ask(hi(text), sampling=sampling) for each in (bench, cold))
        assert text_of(warm) == text_of(fresh)
    assert isinstance(error_of(bench.ask(hi(start + BROKEN + start))), errors.ModelFault)
