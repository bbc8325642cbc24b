"""Another model, or other settings, while an engine goes on: what it waits for, what it reports,
and the way back when it fails."""

import tempfile
import time
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from punie_model_host import compilation
from punie_model_host import engine as engine_module
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
from punie_model_host.serving import Serving
from punie_protocol import errors
from punie_protocol.engine import EngineSettings, Kernels, Speculation
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import Finished, TextDelta
from punie_protocol.messages.to_model_host import Generate, UserMessage
from punie_protocol.messages.to_supervisor import Load, ModelState
from tests.support.packed_models import edit_config, tune
from tests.support.tiny_model import make_tiny_model

FIRST = EngineSettings(memory_mb=64, max_batch=2, step_tokens=16, speculation=Speculation.OFF)
SECOND = EngineSettings(memory_mb=32, max_batch=5, step_tokens=64, speculation=Speculation.OFF)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "brief", says=["Hello", " there", "."])
    make_tiny_model(folder / "endless", says=["tick", " tock"], loop=True)
    make_tiny_model(folder / "random")
    tune(folder / "random", folder / "tuned", scale=20.0)
    make_tiny_model(folder / "misfit")
    edit_config(folder / "misfit", hidden_size=32)
    return folder


class Switched:
    """An engine, and what came out of it."""

    def __init__(
        self,
        models: Path,
        model: str,
        first: EngineSettings = FIRST,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.emissions: list[Emission] = []
        self.engine = Engine(models, first, self.emissions.append, clock=clock)
        self.load(model)

    def load(self, model: str, settings: EngineSettings | None = None, id: int = 1) -> ModelState:
        self.engine.handle(LoadCommand(id, model, settings))
        self.run()
        return self.states(id)[-1]

    def run(self) -> None:
        for _ in range(20_000):
            if not self.engine.has_work:
                return
            self.engine.step()
        raise AssertionError("no end")

    def ask(self, number: int) -> Key:
        key = Key(1, number)
        request = Generate(
            request_id=number,
            client_id="c",
            conversation_id="v",
            priority=Priority.INTERACTIVE,
            messages=[UserMessage(text="hi")],
        )
        self.engine.handle(Submit(key, request, 0.0))
        return key

    def answer(self, key: Key) -> str:
        messages = [e.message for e in self.emissions if isinstance(e, ToClient) and e.key == key]
        assert isinstance(messages[-1], Finished), messages
        return "".join(message.text for message in messages if isinstance(message, TextDelta))

    def states(self, id: int) -> list[ModelState]:
        every = [e.state for e in self.emissions if isinstance(e, ModelIs)]
        return [state for state in every if state.request_id == id]

    @property
    def settings(self) -> EngineSettings:
        assert self.engine._serving is not None
        return self.engine._serving._settings


def test_settings_are_those_of_the_last_load_that_gave_some(models: Path) -> None:
    switched = Switched(models, "brief")
    assert switched.settings == FIRST
    assert switched.load("brief", SECOND, 2).state is Load.READY  # the same model, for its settings
    assert switched.settings == SECOND
    assert switched.load("random", None, 3).state is Load.READY
    assert switched.settings == SECOND


def test_a_load_that_fails_keeps_model_and_settings(models: Path) -> None:
    switched = Switched(models, "brief")
    failed = switched.load("nothing", SECOND, 2)
    assert (failed.state, failed.model and failed.model.name) == (Load.FAILED, "brief")
    assert switched.settings == FIRST


def test_a_model_that_cannot_be_taken_up_brings_the_old_one_back(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are read, and then there is no memory for what works with them."""

    class Tight(Serving):
        def __init__(self, loaded: Any, settings: EngineSettings, *more: Any) -> None:
            if settings == SECOND:
                raise MemoryError("no room for keys")
            super().__init__(loaded, settings, *more)

    switched = Switched(models, "brief")
    monkeypatch.setattr(engine_module, "Serving", Tight)
    failed = switched.load("random", SECOND, 2)
    assert failed.state is Load.FAILED
    assert isinstance(failed.error, errors.Internal)
    assert "no room for keys" in failed.error.message
    assert failed.model is not None
    assert failed.model.name == "brief"
    assert switched.settings == FIRST
    key = switched.ask(1)
    switched.run()
    assert switched.answer(key) == "Hello there."
    names = [state.name for state in switched.states(2) if state.state is Load.LOADING]
    assert list(dict.fromkeys(names)) == ["random", "brief"]  # the way back shows, too


def test_requests_under_way_end_first_and_new_ones_wait(models: Path) -> None:
    switched = Switched(models, "endless")
    first = switched.ask(1)
    switched.engine.step()
    switched.engine.handle(LoadCommand(2, "brief", SECOND))
    later = switched.ask(2)
    for _ in range(20):
        switched.engine.step()
    assert switched.settings == FIRST
    assert [state.state for state in switched.states(2)] == [Load.LOADING]
    switched.engine.handle(Cancel(first))  # it would go on to the end of its window
    switched.run()
    assert switched.settings == SECOND
    assert switched.answer(later) == "Hello there."


def test_who_waited_is_not_read_in_one_step(models: Path) -> None:
    """Hundreds may wait, and a long conversation takes a second to read."""
    ticks = count()
    switched = Switched(models, "brief", clock=lambda: next(ticks) / 20)
    switched.engine.handle(LoadCommand(2, "random"))
    keys = [switched.ask(number) for number in range(1, 9)]
    switched.engine.step()
    waiting = [len(switched.engine._before)]
    while switched.engine._before:
        switched.engine.step()
        waiting.append(len(switched.engine._before))
    steps = [before - after for before, after in pairwise(waiting)]
    assert sum(steps) == len(keys)
    assert all(1 <= step < len(keys) for step in steps)
    switched.run()
    for key in keys:
        switched.answer(key)


def test_a_newer_load_takes_the_place_of_one_that_waits(models: Path) -> None:
    switched = Switched(models, "endless")
    key = switched.ask(1)
    switched.engine.step()
    switched.engine.handle(LoadCommand(2, "random"))
    switched.engine.handle(LoadCommand(3, "brief"))
    assert isinstance(switched.states(2)[-1].error, errors.Cancelled)
    switched.engine.handle(Cancel(key))
    switched.run()
    assert switched.states(3)[-1].state is Load.READY


def test_a_newer_load_that_cannot_be_leaves_the_one_that_waits(models: Path) -> None:
    switched = Switched(models, "endless")
    key = switched.ask(1)
    switched.engine.step()
    switched.engine.handle(LoadCommand(2, "brief"))
    switched.engine.handle(LoadCommand(3, "nothing"))
    assert switched.states(3)[-1].state is Load.FAILED
    switched.engine.handle(Cancel(key))
    switched.run()
    assert switched.states(2)[-1].state is Load.READY


def test_a_draft_model_that_is_new_is_looked_for_before_anything_goes(models: Path) -> None:
    """With speculation auto a model answers without one that does not fit, but nobody who asks for
    one waits until a model has gone and come again, to hear of a misspelt name."""
    switched = Switched(models, "brief")
    serving = switched.engine._serving
    for number, draft in enumerate(("nothing", "endless"), 2):
        failed = switched.load("brief", EngineSettings(draft_model=draft), number)
        assert failed.state is Load.FAILED
        assert failed.error is not None
        assert draft in failed.error.message
        assert switched.engine._serving is serving, "the one before never went"


def test_a_draft_model_of_the_first_settings_may_be_none(models: Path) -> None:
    given = EngineSettings(memory_mb=64, draft_model="nothing")
    switched = Switched(models, "brief", given)
    assert switched.load("random", given, 2).state is Load.READY


@pytest.mark.parametrize("draft", ["nothing", None])
def test_a_needed_draft_model_is_looked_for_before_anything_goes(
    models: Path, draft: str | None
) -> None:
    switched = Switched(models, "brief")
    settings = EngineSettings(speculation=Speculation.DRAFT, draft_model=draft)
    assert switched.load("random", settings, 2).state is Load.FAILED
    assert [state.state for state in switched.states(2)] == [Load.FAILED]
    assert switched.settings == FIRST


def test_a_draft_model_and_a_load_that_fails_leave_kernels_on(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To build a model turns them off."""
    state: list[bool] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(compilation.shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(compilation, "_meet", lambda _: None)
    monkeypatch.setattr(mx, "enable_compile", lambda: state.append(True))
    monkeypatch.setattr(mx, "disable_compile", lambda: state.append(False))
    switched = Switched(models, "brief")
    settings = EngineSettings(memory_mb=64, cpu_kernels=Kernels.ON, draft_model="random")
    assert switched.load("random", settings, 2).state is Load.READY
    assert switched.engine._serving is not None
    assert len(switched.engine._serving.models) == 2
    assert state[-1]
    assert switched.load("misfit", id=3).state is Load.FAILED
    assert state[-1]


def test_from_a_model_to_an_adapter_on_it_and_back(models: Path) -> None:
    """They have the same tokenizer and the same folder of weights, and are different models."""
    switched = Switched(models, "random")
    answers = []
    for number, model in enumerate(("random", "tuned", "random"), 2):
        state = switched.load(model, id=number)
        assert state.model is not None
        assert state.model.folder == str(models / model)
        assert state.model.name == ("random+tuned" if model == "tuned" else "random")
        key = switched.ask(number)
        switched.run()
        answers.append(switched.answer(key))
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]
