"""The engine on tiny models: real weights, real MLX, no sockets and no threads."""

import os
import time
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from punie_model_host import model_switch
from punie_model_host.desk import MAX_OF_CLIENT
from punie_model_host.engine import Engine
from punie_model_host.engine_messages import (
    Cancel,
    Emission,
    Key,
    LoadCommand,
    ModelIs,
    Submit,
    ToClient,
)
from punie_model_host.folder import ModelFolder
from punie_model_host.loading import LoadedModel, build
from punie_protocol import errors
from punie_protocol.engine import EngineSettings
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    PrefillProgress,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToModelClient,
    ToolCall,
)
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    Generate,
    Sampling,
    ToolCallPart,
    ToolMessage,
    ToolSchema,
    UserMessage,
)
from punie_protocol.messages.to_supervisor import Load, ModelState
from tests.support.tiny_model import make_tiny_model

LOOK = [
    "<think>",
    "Where?",
    "</think>",
    "I look.",
    "\n\n",
    "<tool_call>",
    "\n<function=read_file>\n<parameter=path>\n",
    "a.py\n",
    "</parameter>\n<parameter=max_lines>",
    "3",
    "</parameter> </function>",
    "</tool_call>",
]

GREP = [
    "I search.",
    "<tool_call>",
    '\n<function=execute_code><parameter=code>\nsearch("',
    "<",
    "|im_end|>",
    '")\n</parameter></function>\n',
    "</tool_call>",
]
"""A program that looks for a control token, as the template of tiny models writes calls."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "random")
    make_tiny_model(folder / "brief", says=["Hello", " there", "."])
    make_tiny_model(folder / "look", says=LOOK)
    make_tiny_model(folder / "torn-call", says=["<tool_call>", "what?"])
    make_tiny_model(folder / "grep", says=GREP)
    return folder


SETTINGS = EngineSettings(memory_mb=256, step_tokens=16)


class Bench:
    """An engine with what came out of it. Time is as the clock of the machine."""

    def __init__(self, models: Path, model: str, *, settings: EngineSettings = SETTINGS) -> None:
        self.emissions: list[Emission] = []
        self.look_up: Callable[[], None] = lambda: None
        calls = count(1)
        self.engine = Engine(
            models,
            settings,
            self.emissions.append,
            look_up=self._look_up,
            new_call_id=lambda: f"call-{next(calls)}",
        )
        self._ids = count(1)
        self.load(model)

    def _look_up(self) -> None:
        self.look_up()

    def load(self, model: str, request_id: int = -1) -> ModelState:
        self.engine.handle(LoadCommand(request_id, model))
        self.run()
        return self.states()[-1]

    def submit(
        self,
        *messages: AnyChatMessage,
        sampling: Sampling | None = None,
        tools: list[ToolSchema] | None = None,
        conversation: str = "v",
        client: str = "c",
    ) -> Key:
        key = Key(1, next(self._ids))
        request = Generate(
            request_id=key.request_id,
            client_id=client,
            conversation_id=conversation,
            priority=Priority.INTERACTIVE,
            messages=list(messages),
            sampling=sampling or Sampling(),
            tools=tools or [],
        )
        self.engine.handle(Submit(key, request, time.perf_counter()))
        return key

    def run(self, steps: int = 100_000) -> None:
        while self.engine.has_work and steps:
            self.engine.step()
            steps -= 1

    def ask(self, *messages: AnyChatMessage, **options: object) -> list[ToModelClient]:
        key = self.submit(*messages, **options)  # ty: ignore[invalid-argument-type]
        self.run()
        return self.of(key)

    def of(self, key: Key) -> list[ToModelClient]:
        return [e.message for e in self.emissions if isinstance(e, ToClient) and e.key == key]

    def states(self) -> list[ModelState]:
        return [e.state for e in self.emissions if isinstance(e, ModelIs)]


def text_of(messages: list[ToModelClient]) -> str:
    return "".join(message.text for message in messages if isinstance(message, TextDelta))


def finished(messages: list[ToModelClient]) -> Finished:
    assert isinstance(messages[-1], Finished), messages[-1]
    return messages[-1]


def error_of(messages: list[ToModelClient]) -> errors.WireError:
    assert isinstance(messages[-1], Failed), messages[-1]
    return messages[-1].error


def hi(text: str = "hi") -> UserMessage:
    return UserMessage(text=text)


def test_load_reports_progress_and_the_model(models: Path) -> None:
    bench = Bench(models, "brief")
    first, last = bench.states()[0], bench.states()[-1]
    assert (first.state, last.state) == (Load.LOADING, Load.READY)
    assert first.total_bytes == (models / "brief" / "model.safetensors").stat().st_size
    assert last.model is not None
    assert (last.model.name, last.model.folder) == ("brief", str(models / "brief"))


def test_answer_usage_and_timings(models: Path) -> None:
    answer = Bench(models, "brief").ask(hi())
    assert isinstance(answer[0], PrefillProgress)
    assert text_of(answer) == "Hello there."
    end = finished(answer)
    assert (end.stop_reason, end.usage.output_tokens) == (StopReason.STOP, 4)
    assert end.usage.cached_tokens == 0
    assert answer[0].total == end.usage.input_tokens
    assert end.timings.prefill > 0
    assert end.timings.decode > 0


def test_greedy_is_deterministic_and_a_seed_too(models: Path) -> None:
    bench = Bench(models, "random")
    greedy = Sampling(max_tokens=40)
    texts = {text_of(bench.ask(hi(), sampling=greedy)) for _ in range(3)}
    assert len(texts) == 1
    warm = [
        Sampling(temperature=1.5, top_p=0.9, top_k=50, min_p=0.01, seed=seed, max_tokens=40)
        for seed in (1, 2, 1)
    ]
    first, other, again = (text_of(bench.ask(hi(), sampling=sampling)) for sampling in warm)
    assert first == again != other


def test_repetition_penalty_looks_back(models: Path) -> None:
    bench = Bench(models, "random")
    answers = {
        text_of(bench.ask(hi(), sampling=Sampling(repetition_penalty=penalty, max_tokens=40)))
        for penalty in (1.0, 5.0, 5.0)
    }
    assert len(answers) == 2


def test_calls_and_thinking_are_no_text(models: Path) -> None:
    schema = '{"type": "object", "properties": {"max_lines": {"type": "integer"}}}'
    tools = [ToolSchema(name="read_file", description="Read.", parameters=schema)]
    answer = Bench(models, "look").ask(hi(), tools=tools)
    assert text_of(answer) == "I look."
    assert [m.text for m in answer if isinstance(m, ThinkingDelta)] == ["Where?"]
    (call,) = [message for message in answer if isinstance(message, ToolCall)]
    assert (call.name, call.call_id) == ("read_file", "call-1")
    assert call.arguments == '{"path": "a.py", "max_lines": 3}'
    assert finished(answer).stop_reason is StopReason.TOOL_CALLS


def test_malformed_call_fails_and_is_quoted(models: Path) -> None:
    error = error_of(Bench(models, "torn-call").ask(hi()))
    assert isinstance(error, errors.ModelFault)
    assert "<tool_call>what?" in error.message


def test_length_and_stop_strings(models: Path) -> None:
    bench = Bench(models, "brief")
    cut = bench.ask(hi(), sampling=Sampling(max_tokens=2))
    assert (text_of(cut), finished(cut).stop_reason) == ("Hello there", StopReason.LENGTH)
    stopped = bench.ask(hi(), sampling=Sampling(stop=["lo th"]))
    assert (text_of(stopped), finished(stopped).stop_reason) == ("Hel", StopReason.STOP)


def test_second_turn_reuses_the_shared_prefix(models: Path) -> None:
    bench = Bench(models, "brief")
    first = finished(bench.ask(hi()))
    turn = [hi(), AssistantMessage(text="Hello there."), hi("and?")]
    second = bench.ask(*turn)
    # prompt and answer are in the cache; the end marker was the last token, and never an input
    shared = first.usage.input_tokens + first.usage.output_tokens - 1
    assert finished(second).usage.cached_tokens == shared
    cold = finished(Bench(models, "brief").ask(*turn))
    assert cold.usage.input_tokens == finished(second).usage.input_tokens
    assert text_of(second) == "Hello there."


def test_a_program_with_a_control_token_keeps_the_prefix(models: Path) -> None:
    bench = Bench(models, "grep")
    first = bench.ask(hi())
    (call,) = [message for message in first if isinstance(message, ToolCall)]
    assert call.arguments == '{"code": "search(\\"<|im_end|>\\")"}'
    part = ToolCallPart(call_id=call.call_id, name=call.name, arguments=call.arguments)
    second = bench.ask(
        hi(),
        AssistantMessage(text=text_of(first), tool_calls=[part]),
        ToolMessage(call_id=call.call_id, name=call.name, text="no match"),
    )
    usage = finished(first).usage
    assert finished(second).usage.cached_tokens == usage.input_tokens + usage.output_tokens - 1


def test_cached_answers_equal_cold_ones(models: Path) -> None:
    sampling = Sampling(max_tokens=30)
    shared = "a long beginning that both conversations share, " * 3
    bench = Bench(models, "random")
    for ending in ("one", "two", "one more"):
        warm = bench.ask(hi(shared + ending), sampling=sampling, conversation=ending)
        cold = Bench(models, "random").ask(hi(shared + ending), sampling=sampling)
        assert text_of(warm) == text_of(cold)
        assert (finished(warm).usage.cached_tokens > len(shared)) == (ending != "one")


def test_context_overflow_names_both_numbers(models: Path) -> None:
    error = error_of(Bench(models, "brief").ask(hi("x" * 2000)))
    assert isinstance(error, errors.ContextOverflow)
    assert error.tokens > 2000
    assert error.limit == 1024


def test_max_tokens_ends_at_the_window(models: Path) -> None:
    answer = Bench(models, "random").ask(hi("x" * 980), sampling=Sampling(max_tokens=500))
    usage = finished(answer).usage
    assert usage.input_tokens + usage.output_tokens <= 1024
    assert usage.output_tokens > 0


def test_cancel_in_prefill_in_decode_and_in_the_queue(models: Path) -> None:
    bench = Bench(models, "random")
    active = bench.submit(hi("x" * 200))
    waiting = bench.submit(hi("y"))
    bench.run(steps=4)
    assert not text_of(bench.of(active))
    for key in (active, waiting):
        bench.engine.handle(Cancel(key))
        assert isinstance(error_of(bench.of(key)), errors.Cancelled)
    assert not bench.engine.has_work
    # what was computed is kept
    again = bench.submit(hi("x" * 200), sampling=Sampling(max_tokens=400))
    bench.run(steps=40)
    before = bench.of(again)
    assert text_of(before)
    bench.engine.handle(Cancel(again))
    failed = bench.of(again)[-1]
    assert isinstance(failed, Failed)
    assert 0 < failed.usage.cached_tokens < 200
    assert failed.usage.output_tokens > 0
    bench.engine.handle(Cancel(again))
    assert len(bench.of(again)) == len(before) + 1


@pytest.mark.parametrize(
    ("messages", "options", "word"),
    [
        ([], {}, "without messages"),
        ([hi()], {"sampling": Sampling(top_p=7.0)}, "top_p"),
        ([hi()], {"sampling": Sampling(max_tokens=0)}, "max_tokens"),
        ([hi()], {"sampling": Sampling(stop=[""])}, "stop"),
        (
            [hi()],
            {"tools": [ToolSchema(name="t", description="", parameters="[]")]},
            "parameters of tool t",
        ),
        (
            [AssistantMessage(tool_calls=[ToolCallPart(call_id="7", name="t", arguments="{")])],
            {},
            "arguments of call 7",
        ),
    ],
)
def test_a_bad_request_ends_alone(
    models: Path, messages: list[AnyChatMessage], options: dict, word: str
) -> None:
    bench = Bench(models, "brief")
    error = error_of(bench.ask(*messages, **options))
    assert isinstance(error, errors.InvalidRequest)
    assert word in error.message
    assert text_of(bench.ask(hi())) == "Hello there."


def test_conversations_with_calls_go_through_the_template(models: Path) -> None:
    answer = Bench(models, "brief").ask(
        hi(),
        AssistantMessage(
            text="I look.",
            tool_calls=[ToolCallPart(call_id="1", name="read_file", arguments='{"path": "a"}')],
        ),
        ToolMessage(call_id="1", name="read_file", text="x = 1"),
    )
    assert text_of(answer) == "Hello there."


def test_a_bad_switch_keeps_the_model_and_a_good_one_empties_the_cache(models: Path) -> None:
    bench = Bench(models, "brief")
    bench.ask(hi())
    failed = bench.load("none", 7)
    assert (failed.state, failed.request_id) == (Load.FAILED, 7)
    assert failed.model is not None
    assert failed.model.name == "brief"
    assert finished(bench.ask(hi())).usage.cached_tokens > 0
    assert bench.load("brief", 8).state is Load.READY
    assert finished(bench.ask(hi())).usage.cached_tokens == 0


def damage(*weights: Path) -> Callable[[], None]:
    """Return what cuts `weights` off as soon as one of them is being read: after the checks."""
    sizes = {path: path.stat().st_size for path in weights}

    def cut() -> None:
        for path, size in sizes.items():
            os.truncate(path, size // 8)

    return cut


def test_weights_that_fail_in_reading_bring_the_old_model_back(
    models: Path, tmp_path: Path
) -> None:
    new = make_tiny_model(tmp_path / "new", seed=2)
    bench = Bench(models, "brief")
    bench.look_up = damage(new / "model.safetensors")
    failed = bench.load(str(new), 7)
    assert (failed.state, failed.request_id) == (Load.FAILED, 7)
    assert isinstance(failed.error, errors.ModelLoadFailed)
    assert (failed.error.folder, failed.error.file) == (str(new), "model.safetensors")
    assert failed.model is not None
    assert failed.model.name == "brief"
    assert text_of(bench.ask(hi())) == "Hello there."


def test_a_model_that_fails_in_reading_is_freed_before_the_old_one_is_read(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref] = []
    weights: list[weakref.ref] = []

    def recording(folder: ModelFolder) -> LoadedModel:
        loaded = build(folder)
        built.append(weakref.ref(loaded.model))
        weights.append(weakref.ref(loaded.arrays[0]))
        return loaded

    new = make_tiny_model(tmp_path / "new", seed=2)
    bench = Bench(models, "brief")
    monkeypatch.setattr(model_switch, "build", recording)
    cut, alive = damage(new / "model.safetensors"), []

    def look_up() -> None:
        cut()
        alive.append([made() is not None for made in (*built, *weights)])

    bench.look_up = look_up
    assert bench.load(str(new), 7).state is Load.FAILED
    assert alive[0] == [True, True]
    assert alive[-1] == [False, True, False, True]


def test_old_weights_that_are_gone_too_leave_no_model(models: Path, tmp_path: Path) -> None:
    old = make_tiny_model(tmp_path / "old", says=["Hello"])
    new = make_tiny_model(tmp_path / "new", seed=2)
    bench = Bench(models, str(old))
    bench.look_up = damage(old / "model.safetensors", new / "model.safetensors")
    assert bench.load(str(new), 7).model is None
    error = error_of(bench.ask(hi()))
    assert isinstance(error, errors.ModelUnavailable)
    assert str(new) in error.message
    assert bench.load("brief", 8).state is Load.READY
    assert text_of(bench.ask(hi())) == "Hello there."


def test_a_request_under_way_ends_before_a_switch(models: Path) -> None:
    bench = Bench(models, "brief")
    first = bench.submit(hi())
    bench.run(steps=2)
    bench.engine.handle(LoadCommand(9, "look"))
    second = bench.submit(hi())
    bench.run()
    assert text_of(bench.of(first)) == "Hello there."
    assert text_of(bench.of(second)) == "I look."


def test_a_newer_switch_supersedes_a_waiting_one(models: Path) -> None:
    bench = Bench(models, "brief")
    bench.engine.handle(LoadCommand(1, "random"))
    bench.engine.handle(LoadCommand(2, "look"))
    bench.run()
    ends = {s.request_id: s for s in bench.states() if s.state is not Load.LOADING}
    assert isinstance(ends[1].error, errors.Cancelled)
    assert (ends[2].state, ends[2].model and ends[2].model.name) == (Load.READY, "look")


def test_without_a_model_requests_fail_with_the_reason(models: Path) -> None:
    bench = Bench(models, "none")
    error = error_of(bench.ask(hi()))
    assert isinstance(error, errors.ModelUnavailable)
    assert str(models / "none") in error.message
    bench.load("brief")
    assert text_of(bench.ask(hi())) == "Hello there."


def test_a_full_queue_refuses_its_client_alone(models: Path) -> None:
    bench = Bench(models, "brief")
    keys = [bench.submit(hi()) for _ in range(MAX_OF_CLIENT + 1)]
    other = bench.submit(hi(), client="other")
    error = error_of(bench.of(keys[-1]))
    assert isinstance(error, errors.Overloaded)
    assert str(MAX_OF_CLIENT) in error.message
    bench.run()
    assert all(text_of(bench.of(key)) == "Hello there." for key in [*keys[:-1], other])
