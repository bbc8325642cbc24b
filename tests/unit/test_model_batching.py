"""Several requests at once in the engine: who waits for whom, what one's fault does to others."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from punie_model_host.batch import RaggedBatch, Row
from punie_model_host.engine import Engine
from punie_model_host.engine_messages import (
    Cancel,
    Emission,
    Key,
    LoadCommand,
    ModelIs,
    StatusIs,
    Submit,
    ToClient,
)
from punie_model_host.profile import SamplingProfile
from punie_model_host.sampling import RowSampler
from punie_model_host.sampling_plan import plan_sampling
from punie_model_host.scheduler import Plan
from punie_model_host.token_trie import MAX_SPAN
from punie_protocol import errors
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    TextDelta,
    ToModelClient,
)
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    Generate,
    Sampling,
    SystemMessage,
    ToolSchema,
    UserMessage,
)
from punie_protocol.messages.to_supervisor import Load
from tests.support.tiny_model import make_tiny_model

STEP = 16
POISON = 256
"""A token that no text has: the first that is no byte."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "random")
    make_tiny_model(folder / "other", seed=2)
    make_tiny_model(folder / "endless", says=["a", "b", "c"], loop=True)
    return folder


class Bench:
    """An engine, everything it emitted, and by which step."""

    def __init__(self, models: Path, model: str = "random", **options: Any) -> None:
        self.steps = 0
        self.emitted: list[tuple[int, Emission]] = []
        settings = options.pop("settings", EngineSettings(memory_mb=64, step_tokens=STEP))
        self.engine = Engine(
            models, settings, lambda one: self.emitted.append((self.steps, one)), **options
        )
        self._ids = count(1)
        self.load(model)

    def load(self, model: str) -> None:
        self.engine.handle(LoadCommand(-1, model))
        self.run()

    def submit(
        self,
        text: str,
        *,
        tokens: int = 30,
        client: str = "c",
        key: Key | None = None,
        before: Sequence[AnyChatMessage] = (),
        tools: Sequence[ToolSchema] = (),
        **sampling: Any,
    ) -> Key:
        key = key or Key(1, next(self._ids))
        request = Generate(
            request_id=key.request_id,
            client_id=client,
            conversation_id="v",
            priority=Priority.INTERACTIVE,
            messages=[*before, UserMessage(text=text)],
            tools=list(tools),
            sampling=Sampling(max_tokens=tokens, **sampling),
        )
        self.engine.handle(Submit(key, request, time.perf_counter()))
        return key

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        while self.engine.has_work and not until():
            self.steps += 1
            self.engine.step()

    def step(self, times: int = 1) -> None:
        goal = self.steps + times
        self.run(lambda: self.steps >= goal)

    def of(self, key: Key) -> list[ToModelClient]:
        return [e.message for _, e in self.emitted if isinstance(e, ToClient) and e.key == key]

    def text(self, key: Key) -> str:
        return "".join(m.text for m in self.of(key) if isinstance(m, TextDelta))

    def steps_of(self, key: Key) -> list[int]:
        """Return the step of each piece of the answer."""
        return [
            at
            for at, e in self.emitted
            if isinstance(e, ToClient) and e.key == key and isinstance(e.message, TextDelta)
        ]

    def end(self, key: Key) -> ToModelClient:
        return self.of(key)[-1]

    def error(self, key: Key) -> errors.WireError:
        end = self.end(key)
        assert isinstance(end, Failed), end
        return end.error

    def spoke(self, key: Key, times: int = 1) -> Callable[[], bool]:
        return lambda: len(self.steps_of(key)) >= times


def test_a_long_prompt_never_holds_up_a_stream(models: Path) -> None:
    bench = Bench(models, "endless")
    stream = bench.submit("hi", tokens=900)
    bench.run(bench.spoke(stream, 3))
    long = bench.submit("x" * 600, client="long", tokens=5)
    began = bench.steps
    bench.run(bench.spoke(long))
    assert bench.steps - began >= 600 // STEP
    during = [at for at in bench.steps_of(stream) if at > began]
    assert sorted(set(during)) == list(range(began + 1, bench.steps + 1))


def test_a_joining_request_waits_one_step(models: Path) -> None:
    bench = Bench(models, "endless")
    streams = [bench.submit("hi", tokens=200, client=f"c{n}") for n in range(4)]
    bench.run(bench.spoke(streams[0], 3))
    joins = bench.submit("y", client="new", tokens=5)
    prompt = len("<|im_start|>user\ny<|im_end|>\n<|im_start|>assistant\n")
    bench.run(bench.spoke(joins))
    first = bench.steps_of(joins)[0]
    assert first <= bench.steps_of(streams[0])[2] + 1 + prompt // STEP + 2


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_cancel_frees_its_row_at_once_and_its_id(models: Path, ahead: int) -> None:
    bench = Bench(models, ahead=ahead)
    plain = Bench(models)
    wanted = plain.submit("bb")
    plain.run()
    kept = bench.submit("aa", tokens=60)
    gone = bench.submit("cc", tokens=60)
    bench.run(bench.spoke(gone, 4))
    bench.engine.handle(Cancel(gone))
    assert isinstance(bench.error(gone), errors.Cancelled)
    said = len(bench.of(gone))
    again = bench.submit("bb", key=gone)  # what is in flight of the old one is not its
    bench.run()
    text = "".join(m.text for m in bench.of(again)[said:] if isinstance(m, TextDelta))
    assert text == plain.text(wanted)
    assert isinstance(bench.end(kept), Finished)


def test_a_cancel_in_the_middle_of_a_prompt_keeps_what_was_computed(models: Path) -> None:
    bench = Bench(models)
    key = bench.submit("x" * 400)
    bench.step(4)
    bench.engine.handle(Cancel(key))
    assert not bench.engine.has_work
    again = bench.submit("x" * 400, tokens=2)
    bench.run()
    end = bench.end(again)
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens >= 3 * STEP


class Poisoned:
    """A model that cannot compute one token; it says so while the graph is built."""

    def __init__(self, model: Any, token: int) -> None:
        self._model = model
        self._token = token
        self.failures = 0

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        if (inputs == self._token).any().item():
            self.failures += 1
            raise RuntimeError("poison")
        return self._model(inputs, cache=cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def poison(bench: Bench, token: int) -> Poisoned:
    serving = bench.engine._serving
    assert serving is not None
    model = Poisoned(serving._loaded.model, token)
    object.__setattr__(serving._loaded, "model", model)
    serving.batch._model = serving.prompts._model = model
    return model


def test_a_row_that_fails_the_forward_ends_alone_and_the_others_go_on(models: Path) -> None:
    never = {POISON: -100.0}
    plain = Bench(models)
    wanted = [plain.submit(text, logit_bias=never) for text in ("aa", "bb")]
    plain.run()
    bench = Bench(models)
    good = [bench.submit(text, logit_bias=never) for text in ("aa", "bb")]
    bench.run(bench.spoke(good[0], 5))
    model = poison(bench, POISON)
    bad = bench.submit("cc", logit_bias={POISON: 100.0})
    bench.run()
    assert model.failures == 2  # in the batch, then alone
    assert isinstance(bench.error(bad), errors.ModelFault)
    assert "poison" in bench.error(bad).message
    assert [bench.text(key) for key in good] == [plain.text(key) for key in wanted]


def test_a_prompt_that_fails_ends_alone(models: Path) -> None:
    bench = Bench(models)
    good = bench.submit("aa")
    bench.run(bench.spoke(good))
    loaded = bench.engine._switch.loaded
    assert loaded is not None
    model = poison(bench, loaded.tokenizer.encode("\x7f", add_special_tokens=False)[0])
    bad = bench.submit("c\x7fc")
    bench.run()
    assert model.failures == 1
    assert isinstance(bench.error(bad), errors.ModelFault)
    assert isinstance(bench.end(good), Finished)


def test_requests_for_the_next_model_wait_for_the_switch(models: Path) -> None:
    other = Bench(models, "other")
    wanted = other.submit("after")
    other.run()
    bench = Bench(models)
    before = bench.submit("before")
    bench.step(3)
    bench.engine.handle(LoadCommand(5, "other"))
    after, dropped = bench.submit("after"), bench.submit("dropped")
    bench.engine.handle(Cancel(dropped))
    bench.run()
    ready = next(
        n
        for n, (_, e) in enumerate(bench.emitted)
        if isinstance(e, ModelIs) and e.state.request_id == 5 and e.state.state is Load.READY
    )
    order = [e.key for _, e in bench.emitted[:ready] if isinstance(e, ToClient)]
    assert isinstance(bench.end(before), Finished)
    assert after not in order
    assert bench.text(after) == other.text(wanted)
    assert isinstance(bench.error(dropped), errors.Cancelled)


def test_a_request_that_comes_while_a_model_is_read_waits_for_it(models: Path) -> None:
    came: list[Key] = []

    def look_up() -> None:
        if bench and not came:
            came.append(bench[0].submit("between two tensors"))

    bench: list[Bench] = []
    bench.append(Bench(models, look_up=look_up))
    bench[0].load("other")
    assert isinstance(bench[0].end(came[0]), Finished)


def test_the_cache_of_the_model_before_is_saved_for_a_while_only(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    for seconds in (60.0, 0.0):
        monkeypatch.setattr("punie_model_host.engine._SAVE_S", seconds)
        folder = tmp_path / str(seconds)
        bench = Bench(models, cache_dir=folder)
        bench.submit("x" * 300, tokens=4)
        bench.run()
        bench.load("other")
        saved.append(len(list(folder.glob("*/*.safetensors"))))
    assert saved[0] > saved[1] == 0


def test_a_folder_that_is_gone_after_its_model_was_read_costs_the_disk_cache_alone(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **_more: object) -> str:
        raise FileNotFoundError(2, "no such file", "config.json")

    monkeypatch.setattr("punie_model_host.serving.fingerprint", gone)
    bench = Bench(models, cache_dir=tmp_path)
    key = bench.submit("hi")
    bench.run()
    assert isinstance(bench.end(key), Finished)


def test_a_prompt_that_cannot_be_copied_into_the_prefix_cache_is_answered(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(models)
    serving = bench.engine._serving
    assert serving is not None

    def no_room(*_: object, **__: object) -> None:
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(serving._cache, "put", no_room)
    keys = [bench.submit("hi" * size) for size in (3, 90)]
    bench.run()
    assert all(isinstance(bench.end(key), Finished) for key in keys)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(("what", "method"), [(Row, "detach"), (RaggedBatch, "join")])
def test_a_row_that_cannot_be_moved_is_computed_again(
    models: Path, monkeypatch: pytest.MonkeyPatch, what: type, method: str, ahead: int
) -> None:
    plain = Bench(models)
    wanted = [plain.submit("hi" * n, client=f"c{n}", tokens=80) for n in range(3)]
    plain.run()
    real, calls = getattr(what, method), count(1)

    def fails_once(*args: Any) -> Any:
        if next(calls) == 2:
            raise MemoryError("no room for a row")
        return real(*args)

    settings = EngineSettings(memory_mb=64, step_tokens=STEP, max_batch=2)
    bench = Bench(models, settings=settings, ahead=ahead)
    monkeypatch.setattr(what, method, fails_once)
    keys = [bench.submit("hi" * n, client=f"c{n}", tokens=80) for n in range(3)]
    bench.run()
    assert next(calls) > 2
    assert [bench.text(key) for key in keys] == [plain.text(key) for key in wanted]


def test_freed_buffers_are_not_kept_without_bounds(models: Path) -> None:
    before = mx.set_cache_limit(1 << 40)
    try:
        Bench(models)
        assert mx.set_cache_limit(before) <= 1 << 30
    finally:
        mx.set_cache_limit(before)


def test_a_prompt_stands_once_among_the_running_beside_what_is_predicted(models: Path) -> None:
    off = EngineSettings(step_tokens=STEP, speculation=Speculation.OFF)  # all end at once
    bench = Bench(models, settings=off)
    for number in range(6):
        bench.submit(f"{number}" * 400, client=f"c{number}")
    serving, steps = bench.engine._serving, 0
    assert serving is not None
    while bench.engine.has_work:
        bench.step()
        status = serving.kv_status(bench.engine._requests.values())
        assert status.running <= status.reserved
        steps += status.running > 0
    assert steps > 10


def test_a_conversation_larger_than_the_memory_names_both_numbers(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EngineSettings(memory_mb=16, step_tokens=STEP)
    monkeypatch.setattr("punie_model_host.serving.kv_bytes_per_token", lambda *_: 64 * 1024)
    bench = Bench(models, settings=settings)
    error = bench.error(bench.submit("x" * 400))
    assert isinstance(error, errors.ContextOverflow)
    assert error.tokens > 400 > error.limit
    assert "memory_mb" in error.hint
    # one that fits gets a shorter answer than it asked for, rather than none
    small = bench.submit("hi", tokens=5000)
    bench.run()
    end = bench.end(small)
    assert isinstance(end, Finished)
    assert end.usage.input_tokens + end.usage.output_tokens <= error.limit


def test_requests_beyond_the_memory_wait_their_turn(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EngineSettings(memory_mb=16, step_tokens=STEP)
    monkeypatch.setattr("punie_model_host.serving.kv_bytes_per_token", lambda *_: 20 * 1024)
    bench = Bench(models, "endless", settings=settings)
    keys = [bench.submit("hi", tokens=150) for _ in range(8)]
    most = 0

    def look() -> bool:
        nonlocal most
        assert bench.engine._serving is not None
        most = max(most, len(bench.engine._serving.batch))
        return False

    bench.run(look)
    assert most == 3  # 768 of 819 tokens
    assert all(isinstance(bench.end(key), Finished) for key in keys)


def test_a_restarted_engine_has_the_prefixes_on_disk(models: Path, tmp_path: Path) -> None:
    first = Bench(models, cache_dir=tmp_path)
    key = first.submit("x" * 300, tokens=4)
    first.run()
    cold = first.end(key)
    first.engine.close(time.perf_counter() + 60)
    again = Bench(models, cache_dir=tmp_path)
    warm = again.submit("x" * 300, tokens=4)
    again.run()
    end = again.end(warm)
    assert isinstance(cold, Finished)
    assert isinstance(end, Finished)
    assert cold.usage.cached_tokens == 0
    assert end.usage.cached_tokens == end.usage.input_tokens - 1
    assert again.text(warm) == first.text(key)


def test_who_begins_alike_at_the_same_time_shares_what_one_of_them_computes(models: Path) -> None:
    bench = Bench(models)
    keys = [bench.submit("x" * 500 + f"{n}", client=f"c{n}", tokens=3) for n in range(6)]
    bench.run()
    ends = [end for end in map(bench.end, keys) if isinstance(end, Finished)]
    computed = sum(end.usage.input_tokens - end.usage.cached_tokens for end in ends)
    assert len(ends) == len(keys)
    assert computed < 500 + 6 * 40
    plain = Bench(models)
    wanted = plain.submit("x" * 500 + "5", tokens=3)
    plain.run()
    assert bench.text(keys[5]) == plain.text(wanted)


def test_who_waits_for_a_request_does_not_take_another_of_its_id_for_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, reused = Bench(models), Key(1, 100)
    bench.submit("x" * 500 + "first", client="a", key=reused)
    bench.step(2)
    follower = bench.submit("x" * 500 + "follower", client="b", tokens=3)
    bench.step(2)
    assert bench.engine._requests[follower].leader is not None
    bench.engine.handle(Cancel(reused))
    bench.submit("x" * 500 + "second", client="c", key=reused, tokens=3)
    serving = bench.engine._serving
    assert serving is not None
    real = serving.scheduler.plan

    def second_first(now: float) -> Plan:
        plan = real(now)
        return Plan(plan.decode, tuple(sorted(plan.prefill, key=lambda one: one[0] != reused)))

    monkeypatch.setattr(serving.scheduler, "plan", second_first)
    bench.run()
    assert isinstance(bench.end(follower), Finished)
    assert isinstance(bench.end(reused), Finished)


def test_when_who_computes_what_others_wait_for_is_cancelled_one_of_them_goes_on(
    models: Path,
) -> None:
    bench = Bench(models)
    first, *others = [bench.submit("x" * 500 + f"{n}", client=f"c{n}", tokens=3) for n in range(6)]
    bench.run(lambda: bench.engine._requests[first].computed > 300)
    bench.engine.handle(Cancel(first))
    bench.run()
    ends = [end for end in map(bench.end, others) if isinstance(end, Finished)]
    assert len(ends) == len(others)
    assert sum(end.usage.input_tokens - end.usage.cached_tokens for end in ends) < 200 + 5 * 40


def test_a_prefix_that_is_gone_when_its_request_begins_is_computed(models: Path) -> None:
    bench = Bench(models)
    first = bench.submit("x" * 300, tokens=3)
    bench.run()
    again = bench.submit("x" * 300, tokens=3)
    serving = bench.engine._serving
    assert serving is not None
    assert bench.engine._requests[again].promised > 250
    serving._cache.clear()
    bench.run()
    end = bench.end(again)
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == 0
    assert bench.text(again) == bench.text(first)


def test_instructions_and_tools_are_pinned(models: Path) -> None:
    bench = Bench(models)
    rules = SystemMessage(text="Be brief, be right, and say what you do not know. " * 4)
    tool = ToolSchema(name="look", description="Looks.", parameters='{"type": "object"}')
    for n in range(2):
        bench.submit(f"question {n}", before=[rules], tools=[tool], tokens=3)
    bench.run()
    serving = bench.engine._serving
    assert serving is not None
    shown = serving._reader.count([rules], [tool])
    pinned = serving._cache.pinned_bytes / (2 * 2 * 2 * 16 * 4)  # layers, K and V, heads, floats
    assert shown <= pinned < shown + MAX_SPAN  # whole spans are


def test_reports_end_with_what_is_true(models: Path) -> None:
    bench = Bench(models)
    keys = [bench.submit("hi", client=f"c{n}") for n in range(3)]
    refused = bench.submit("hi", top_p=7.0)
    bench.run()
    deadline = time.monotonic() + 10
    while bench.engine.has_chores and time.monotonic() < deadline:
        bench.engine.do_chore()
    status = [e.status for _, e in bench.emitted if isinstance(e, StatusIs)][-1]
    usage = [end.usage for end in map(bench.end, keys) if isinstance(end, Finished)]
    assert (status.requests["finished"], status.requests["rejected"]) == (3, 1)
    assert status.rejected == {"invalid_request": 1}
    assert (status.queued, status.prefilling, status.running) == (0, 0, 0)
    assert status.input_tokens == sum(one.input_tokens for one in usage)
    assert status.output_tokens == sum(one.output_tokens for one in usage)
    assert status.ttft_s is not None
    assert sum(status.ttft_s.counts) == 3
    assert status.kv.cache > 0
    assert isinstance(bench.error(refused), errors.InvalidRequest)


def test_a_model_with_other_caches_decodes_one_by_one_and_says_so(
    models: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Bench(models)
    wanted = [plain.submit(text) for text in ("aa", "bb", "aab")]
    plain.run()
    monkeypatch.setattr("punie_model_host.probe.why_not_ragged", lambda _: "it is a test")
    with caplog.at_level(logging.WARNING):
        bench = Bench(models)
    assert "decodes-one-by-one" in caplog.text
    keys = [bench.submit(text) for text in ("aa", "bb", "aab")]
    bench.run()
    assert [bench.text(key) for key in keys] == [plain.text(key) for key in wanted]


def test_a_row_without_tokens_can_be_parked() -> None:
    sampler = RowSampler(plan_sampling(Sampling(), SamplingProfile(), 8), 8, (1,))
    row = Row(key=Key(1, 1), caches=[KVCache()], length=0, token=mx.array([1]), sampler=sampler)
    row.detach()
    assert row.caches[0].keys is None
