"""The draft model: it proposes what the model would say, whatever the sampling, from keys and
values that follow each row; and which models may draft for which."""

import json
import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from punie_model_host.draft_loading import choose, load_draft, tokenizer_difference
from punie_model_host.draft_model import DraftModel
from punie_model_host.draft_rows import ROWS, Wish
from punie_model_host.engine_messages import Key
from punie_model_host.folder import check_folder
from punie_model_host.loading import LoadedModel, build, load_tokenizer_of, read_weights
from punie_model_host.memory import KVBudget
from punie_model_host.pace import LEAST
from punie_model_host.profile import SamplingProfile
from punie_model_host.ragged import BLOCK
from punie_model_host.sampling import RowSampler, sample
from punie_model_host.sampling_plan import SamplingPlan, plan_sampling
from punie_protocol.engine import DraftModelStatus, EngineSettings, Speculation
from punie_protocol.errors import InvalidRequest, ModelLoadFailed, PunieError
from punie_protocol.messages.to_model_host import Sampling
from tests.support.small_models import ALONE, Kind, make_small_model

PROMPT = [10, 20, 30, 41, 52]
OTHER = [60, 11, 12]
ANSWER = 16
COUNT = 4
PLANS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "narrow": {"temperature": 1.3, "seed": 3, "top_p": 0.8, "top_k": 20, "min_p": 0.02},
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.9, "presence_penalty": 0.5},
    "penalties-seeded": {"temperature": 0.8, "seed": 5, "repetition_penalty": 1.3},
    "bias": {"logit_bias": {70: 3.0, 71: -50.0}},
    "xtc": {"temperature": 1.0, "seed": 9, "xtc_probability": 0.5, "xtc_threshold": 0.05},
}


@pytest.fixture(autouse=True, scope="module")
def no_compiler() -> None:
    """As in the model host on a CPU."""
    mx.disable_compile()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same again, another one of it, and others that may not draft for it."""
    root = tmp_path_factory.mktemp("models")
    make_small_model(root / "target", Kind.QWEN3)
    make_small_model(root / "same", Kind.QWEN3)
    make_small_model(root / "other", Kind.LLAMA, seed=5)
    make_small_model(root / "padded", Kind.QWEN3, padding=24)
    make_small_model(root / "short", Kind.QWEN3, context_window=64)
    return root


def nothing(_done: int, _total: int) -> None:
    """Progress that nobody follows."""


def load(folder: Path) -> LoadedModel:
    loaded = build(check_folder(folder))
    read_weights(loaded, nothing)
    return loaded


@pytest.fixture(scope="module")
def target(folders: Path) -> LoadedModel:
    return load(folders / "target")


@pytest.fixture
def draft(folders: Path, target: LoadedModel) -> DraftModel:
    """The model as its own draft."""
    return load_draft("same", folders, target, nothing)


def plan_of(target: LoadedModel, wish: dict[str, Any]) -> SamplingPlan:
    return plan_sampling(Sampling(**wish), SamplingProfile(), target.facts.vocabulary)


def answer(target: LoadedModel, prompt: Sequence[int], plan: SamplingPlan) -> list[int]:
    """Return what the model says, alone, with mlx-lm's own caches."""
    row = RowSampler(plan, target.facts.vocabulary, prompt)
    caches, tokens = make_prompt_cache(target.model), list(prompt)
    new = tokens
    for _ in range(ANSWER + COUNT):
        logits = target.model(mx.array([new]), cache=caches)[:, -1, :]
        new = sample(logits, [row]).read()
        tokens += new
    return tokens[len(prompt) :]


class Asking:
    """A request that is answered: what its wishes are at each position."""

    def __init__(self, target: LoadedModel, key: Key, prompt: Sequence[int], **wish: Any) -> None:
        self.key, self.prompt, self.plan = key, list(prompt), plan_of(target, wish)
        self.vocabulary = target.facts.vocabulary
        self.answer = answer(target, prompt, self.plan)

    def wish(self, position: int, count: int = COUNT) -> Wish:
        """Return the wish once so many tokens are there."""
        said = self.answer[:position]
        row = RowSampler(self.plan, self.vocabulary, self.prompt)
        row.take(said)
        return Wish(self.key, np.array(self.prompt + said, dtype=np.uint32), count, row)

    def next(self, position: int, count: int = COUNT) -> list[int]:
        return self.answer[position : position + count]


def caught_up(draft: DraftModel, wish: Wish) -> tuple[list[int], int]:
    """Ask until there is a proposal; return it and the calls it took."""
    for calls in range(1, wish.tokens.size // LEAST + 3):
        if proposed := draft.propose([wish])[wish.key]:
            return proposed, calls
    raise AssertionError("no end of catching up")


def per_token(draft: DraftModel) -> int:
    """Return the bytes of one token's keys and values."""
    return draft._rows.budget.per_token


# what is proposed


@pytest.mark.parametrize("name", PLANS)
def test_a_draft_like_the_model_proposes_its_very_tokens(target, draft, name: str) -> None:
    asking = Asking(target, Key(1, 1), PROMPT, **PLANS[name])
    assert len(set(asking.answer)) > 4, "an answer of one token shows nothing"
    for position in range(ANSWER):
        assert draft.propose([asking.wish(position)]) == {asking.key: asking.next(position)}


@pytest.mark.parametrize("steps", [1, 2, 3, COUNT + 1, 9])
def test_rows_that_take_different_steps_share_forwards(target, draft, steps: int) -> None:
    askings = [
        Asking(target, Key(1, number), [*PROMPT, *range(40, 40 + number)], **wish)
        for number, wish in enumerate(list(PLANS.values())[:3])
    ]
    for turn in range(3):
        positions = [min(turn * steps, ANSWER), min(turn, ANSWER), min(2 * turn, ANSWER)]
        pairs = list(zip(askings, positions, strict=True))
        proposed = draft.propose([asking.wish(position) for asking, position in pairs])
        assert proposed == {asking.key: asking.next(position) for asking, position in pairs}


def test_a_row_that_is_not_asked_for_is_as_it_was(target, draft) -> None:
    first, second = (Asking(target, Key(1, n), p) for n, p in enumerate((PROMPT, OTHER)))
    draft.propose([first.wish(0), second.wish(0)])
    for position in (1, 2, 4):
        assert draft.propose([second.wish(position)])[second.key] == second.next(position)
    assert draft.propose([first.wish(3)])[first.key] == first.next(3)
    assert draft.propose([second.wish(6), first.wish(4)]) == {
        first.key: first.next(4),
        second.key: second.next(6),
    }


def test_each_row_gets_as_many_as_it_wishes(target, draft) -> None:
    first, second = (Asking(target, Key(1, n), p) for n, p in enumerate((PROMPT, OTHER)))
    for position in (0, 1, 3):
        proposed = draft.propose([first.wish(position, 1), second.wish(position, 3)])
        assert proposed[first.key] == first.next(position, 1)
        assert proposed[second.key] == second.next(position, 3)
    assert draft.propose([first.wish(4, 0)]) == {first.key: []}


def test_a_wish_changes_nothing_of_the_row(target, draft) -> None:
    asking = Asking(target, Key(1, 1), PROMPT, **PLANS["penalties-seeded"])
    wish = asking.wish(2)
    before = wish.tokens.copy(), wish.row.position, np.array(wish.row.recent)
    draft.propose([wish])
    assert (wish.tokens == before[0]).all()
    assert wish.row.position == before[1]
    assert (np.array(wish.row.recent) == before[2]).all()


def test_another_model_takes_back_what_was_wrong(folders, target) -> None:
    draft, again = (load_draft("other", folders, target, nothing) for _ in range(2))
    asking, wrong = Asking(target, Key(1, 1), PROMPT), 0
    for position in range(ANSWER):
        proposed = draft.propose([asking.wish(position)])[asking.key]
        assert len(proposed) == COUNT
        assert all(0 <= token < target.facts.vocabulary for token in proposed)
        wrong += proposed != asking.next(position)
        # what one says that has followed is what one says that begins here
        assert again.propose([asking.wish(position)])[asking.key] == proposed
        again.forget(asking.key)
        again.propose([Wish(Key(9, 9), np.array([99, 98], np.uint32), 1, asking.wish(0).row)])
    assert wrong > ANSWER // 2, "nothing was ever taken back"


def test_proposals_end_with_the_answer(folders, target) -> None:
    asking = Asking(target, Key(1, 1), PROMPT)
    stop = asking.answer[2]
    draft = DraftModel(load(folders / "same"), target.facts.vocabulary, frozenset({stop}))
    end = asking.answer.index(stop) + 1
    assert draft.propose([asking.wish(0, 6)])[asking.key] == asking.answer[:end]
    assert draft.propose([asking.wish(end)])[asking.key][:1] == asking.next(end, 1)


@pytest.fixture(scope="module")
def askings(target: LoadedModel) -> list[Asking]:
    """More requests than have drafts at once; those beside each other begin alike."""
    plans = list(PLANS.values())
    return [
        Asking(target, Key(1, n), [*PROMPT, *range(33, 33 + 20 * (n // 2)), n], **plans[n])
        for n in range(ROWS + 2)
    ]


STEPS = st.lists(
    st.tuples(
        st.lists(st.integers(0, ROWS + 1), min_size=1, max_size=ROWS, unique=True),
        st.integers(0, 5),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
"""Who is asked for, how many tokens each has more the next time, and whether the first is over."""


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
def test_whoever_comes_and_goes_proposals_are_right(draft, askings, steps) -> None:
    positions = [0] * len(askings)
    for asked, tokens, is_over in steps:
        wishes = [askings[n].wish(positions[n]) for n in asked]
        assert draft.propose(wishes) == {
            askings[n].key: askings[n].next(positions[n]) for n in asked
        }
        for n in asked:
            positions[n] = min(positions[n] + tokens, ANSWER)
        if is_over:
            draft.forget(askings[asked[0]].key)
            positions[asked[0]] = 0
    assert not draft.error


# prompts


@pytest.fixture
def slow(folders: Path, target: LoadedModel) -> DraftModel:
    """The model as its own draft, whose prompts take so long that chunks are the smallest."""
    seconds = count(step=10)
    draft = DraftModel(load(folders / "same"), target.facts.vocabulary, clock=lambda: next(seconds))
    asking = Asking(target, Key(0, 0), [50] * (LEAST + 1))
    draft.propose([asking.wish(0)])
    return draft


def test_a_long_prompt_is_caught_up_with_bit_by_bit(target, slow) -> None:
    prompt = [33 + n * n % 90 for n in range(400)]
    asking = Asking(target, Key(1, 1), prompt)
    short = Asking(target, Key(1, 2), OTHER)
    slow.propose([asking.wish(0)])
    assert slow.catching_up == 10, "the clock's step"
    proposed, calls = caught_up(slow, asking.wish(0))
    assert proposed == asking.next(0)
    assert calls == -(-(len(prompt) - 1) // LEAST) - 1
    assert slow.propose([asking.wish(3), short.wish(0)]) == {
        asking.key: asking.next(3),
        short.key: short.next(0),
    }
    slow.propose([asking.wish(4), short.wish(2)])
    assert slow.catching_up == 0, "all of it in the first forward"


def test_a_row_that_went_on_without_drafts_is_caught_up_with(target, draft) -> None:
    askings = [Asking(target, Key(1, n), [*PROMPT, n]) for n in range(ROWS)]
    draft.propose([asking.wish(0) for asking in askings])
    prompt = [*askings[0].prompt, *askings[0].next(0), *(33 + n * n % 90 for n in range(60))]
    longer = Asking(target, askings[0].key, prompt)  # as if all of it were its answer
    assert draft.propose([longer.wish(0)])[longer.key] == longer.next(0)
    for asking in askings[1:]:
        assert draft.propose([asking.wish(1)])[asking.key] == asking.next(1)


def test_a_key_of_another_conversation_begins_again(target, draft) -> None:
    for prompt in (PROMPT, OTHER, [OTHER[0]], [7]):
        asking = Asking(target, Key(1, 1), prompt)
        assert draft.propose([asking.wish(0)])[asking.key] == asking.next(0)


def test_the_next_turn_goes_on_from_the_last(target, slow) -> None:
    prompt = [33 + n * n % 90 for n in range(400)]
    first = Asking(target, Key(1, 1), prompt)
    _, calls = caught_up(slow, first.wish(0))
    slow.forget(first.key)
    second = Asking(target, Key(1, 2), [*prompt, *first.next(0, 3), *OTHER])
    assert calls > 2
    assert slow.propose([second.wish(0)])[second.key] == second.next(0)


def test_what_is_held_is_bounded(target, draft) -> None:
    for number in range(3 * ROWS):
        asking = Asking(target, Key(1, number), [number, *PROMPT])
        assert draft.propose([asking.wish(0)])[asking.key] == asking.next(0)
        if number % 2:
            draft.forget(asking.key)
        assert 0 < draft.nbytes <= (ROWS + 1) * BLOCK * per_token(draft)
    draft.forget(Key(7, 7))


def test_rows_over_the_bound_have_none(target, draft) -> None:
    askings = [Asking(target, Key(1, n), [n, *PROMPT]) for n in range(ROWS + 1)]
    proposed = draft.propose([asking.wish(0) for asking in askings])
    assert proposed.pop(askings[-1].key) == []
    assert proposed == {asking.key: asking.next(0) for asking in askings[:-1]}


# limits


def test_a_share_of_the_memory_is_kept_to(target, draft) -> None:
    prompt = [33 + n * n % 90 for n in range(300)]
    asking, small = Asking(target, Key(1, 1), prompt), Asking(target, Key(1, 2), OTHER)
    each = per_token(draft)
    whole = KVBudget(2 * 512 * each, each)
    rest = draft.share(whole)
    assert (rest.total, rest.per_token) == (512 * each, each)
    assert draft.propose([asking.wish(0)]) == {asking.key: []}
    assert caught_up(draft, asking.wish(0))[0] == asking.next(0)
    assert draft.nbytes <= 512 * each
    assert draft.propose([asking.wish(1), small.wish(0)])[small.key] == []
    assert draft.propose([small.wish(0)])[small.key] == small.next(0)
    assert draft.nbytes <= 512 * each


def test_no_more_is_taken_than_whole_contexts_need(target, draft) -> None:
    huge = KVBudget(2**50, 1024)
    taken = huge.total - draft.share(huge).total
    assert taken < 2 * ROWS * 2048 * per_token(draft)


def test_rows_beyond_its_context_have_none(folders, target) -> None:
    draft = load_draft("short", folders, target, nothing)
    asking = Asking(target, Key(1, 1), [33 + n for n in range(55)])
    assert len(draft.propose([asking.wish(5)])[asking.key]) == COUNT
    assert draft.propose([asking.wish(6)])[asking.key] == []
    assert len(draft.propose([asking.wish(6, 3)])[asking.key]) == 3


# faults


class Failing:
    """A model that fails from now on, after `calls` of it."""

    def __init__(self, model: Any, calls: int) -> None:
        self.model, self.calls, self.layers = model, calls, model.layers

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("no memory")
        return self.model(*args, **kwargs)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_model_that_fails_proposes_nothing_more(target, draft, caplog, calls: int) -> None:
    asking = Asking(target, Key(1, 1), PROMPT)
    draft.propose([asking.wish(0)])
    rows = draft._rows
    rows._model = rows._batch._model = Failing(rows._model, calls)
    with caplog.at_level(logging.ERROR):
        other = Asking(target, Key(1, 2), OTHER)
        assert draft.propose([asking.wish(1), other.wish(0)]) == {asking.key: [], other.key: []}
        assert draft.propose([asking.wish(1)]) == {asking.key: []}
    (line,) = caplog.messages
    assert line == "draft-model-failed model=same error='RuntimeError: no memory'"
    assert draft.error == "RuntimeError: no memory"
    assert draft.nbytes == 0
    draft.forget(asking.key)


class Broken(RowSampler):
    """One whose chance cannot be had."""

    def draw(self, position: int) -> Any:
        raise ValueError(position)


def test_a_row_that_cannot_be_sampled_costs_one_call(target, draft) -> None:
    asking = Asking(target, Key(1, 1), PROMPT, **PLANS["seeded"])
    wish = asking.wish(1)
    broken = Wish(Key(1, 2), wish.tokens, 2, Broken(asking.plan, asking.vocabulary, PROMPT))
    assert draft.propose([wish, broken]) == {wish.key: [], broken.key: []}
    assert draft.propose([wish])[wish.key] == asking.next(1)
    assert not draft.error


class Numberless:
    """A model whose logits of the second row are no numbers while it `ails`."""

    def __init__(self, model: Any) -> None:
        self.model, self.ails, self.layers = model, True, model.layers

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        logits = self.model(*args, **kwargs)
        if self.ails and logits.shape[0] > 1:
            logits[1] = mx.nan
        return logits


def test_a_row_without_numbers_has_no_drafts_and_is_dropped(target, draft) -> None:
    first, second = (Asking(target, Key(1, n), p) for n, p in enumerate((PROMPT, OTHER)))
    rows = draft._rows
    model = rows._batch._model = Numberless(rows._model)
    proposed = draft.propose([first.wish(0), second.wish(0)])
    assert proposed == {first.key: first.next(0), second.key: []}
    model.ails = False
    assert draft.propose([second.wish(1), first.wish(1)]) == {
        first.key: first.next(1),
        second.key: second.next(1),
    }


# which models


def refusal(folders: Path, target: LoadedModel, model: str) -> ModelLoadFailed:
    with pytest.raises(PunieError) as caught:
        load_draft(model, folders, target, nothing)
    assert isinstance(caught.value.error, ModelLoadFailed)
    assert caught.value.error.hint
    return caught.value.error


def test_vocabularies_are_padded_to_different_sizes(folders, target) -> None:
    wide = load_draft("padded", folders, target, nothing)
    asking = Asking(target, Key(1, 1), PROMPT)
    (proposed,) = wide.propose([asking.wish(0)]).values()
    assert len(proposed) == COUNT
    assert all(0 <= token < target.facts.vocabulary for token in proposed)
    padded = load(folders / "padded")
    assert padded.facts.vocabulary == target.facts.vocabulary + 24
    narrow = load_draft("target", folders, padded, nothing)
    last = padded.facts.vocabulary - 1  # no token, and no embedding of the draft's
    asking = Asking(padded, Key(1, 1), [*PROMPT, last], **PLANS["seeded"])
    (proposed,) = narrow.propose([asking.wish(0)]).values()
    assert len(proposed) == COUNT
    assert all(0 <= token < target.facts.vocabulary for token in proposed)


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A folder of a model of the same shape, to be changed."""
    return make_small_model(tmp_path / "changed", Kind.QWEN3)


def rewrite(folder: Path, file: str, change: Any) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def test_another_token_is_named_with_both_folders(folders, target, changed: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]

    number = target.tokenizer.get_vocab()["A"]
    rewrite(changed, "tokenizer.json", swap)
    error = refusal(folders, target, str(changed))
    assert error.message == (
        f"{changed}/tokenizer.json: is not the tokenizer of {folders / 'target'}: 2 tokens differ, "
        f"as 'A', which is number {number} there and number {number + 1} here"
    )


def test_a_token_that_is_missing_is_named(folders, target, changed: Path) -> None:
    rewrite(changed, "tokenizer.json", lambda content: content["added_tokens"].pop())
    assert "is number 264 there and no token here" in refusal(folders, target, str(changed)).message


def test_a_tokenizer_of_another_type_is_another(folders, target, changed: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        content["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "A"}

    rewrite(changed, "tokenizer.json", rename)
    assert "they differ in type" in refusal(folders, target, str(changed)).message


def test_other_merges_are_another_tokenizer(tmp_path: Path) -> None:
    def tokenizer(name: str, merges: list[list[str]]) -> TokenizerWrapper:
        def add(content: dict[str, Any]) -> None:
            content["model"]["vocab"]["AB"] = len(content["model"]["vocab"]) + 100
            content["model"]["merges"] = merges

        folder = make_small_model(tmp_path / name, Kind.QWEN3)
        rewrite(folder, "tokenizer.json", add)
        return load_tokenizer_of(folder)

    plain, merging = tokenizer("plain", []), tokenizer("merging", [["A", "B"]])
    assert not tokenizer_difference(merging, merging)
    assert tokenizer_difference(plain, merging) == "they differ in merges"


def test_a_draft_needs_no_chat_template(folders, target, changed: Path) -> None:
    (changed / "chat_template.jinja").unlink()
    asking = Asking(target, Key(1, 1), PROMPT)
    draft = load_draft(str(changed), folders, target, nothing)
    assert draft.propose([asking.wish(0)])[asking.key] == asking.next(0)


@pytest.mark.parametrize("kind", ALONE)
def test_models_that_cannot_take_back_are_refused(tmp_path, folders, target, kind: Kind) -> None:
    folder = make_small_model(tmp_path / "draft", kind)
    message = refusal(folders, target, str(folder)).message
    assert "cannot take tokens back: its caches are" in message
    assert str(folder) in message
    assert str(folders / "target") in message


def test_broken_folders_are_refused_by_file(folders, target, changed: Path) -> None:
    assert refusal(folders, target, "absent").message.endswith("absent: no such model folder")
    (changed / "model.safetensors").write_bytes(b"short")
    assert refusal(folders, target, str(changed)).file == "model.safetensors"
    (changed / "config.json").write_text("{")
    assert refusal(folders, target, str(changed)).file == "config.json"


def choice(folders: Path, target: LoadedModel, **settings: Any) -> Any:
    return choose(EngineSettings(**settings), folders, target, nothing)


@pytest.mark.parametrize("speculation", [Speculation.OFF, Speculation.NGRAM])
def test_no_draft_model_is_read_that_is_not_wanted(folders, target, speculation) -> None:
    wanted = choice(folders, target, speculation=speculation, draft_model="absent")
    assert wanted == (None, DraftModelStatus())
    assert choice(folders, target) == (None, DraftModelStatus())


@pytest.mark.parametrize("speculation", [Speculation.DRAFT, Speculation.AUTO])
def test_the_draft_model_that_is_asked_for(folders, target, speculation) -> None:
    draft, status = choice(folders, target, speculation=speculation, draft_model="other")
    assert status == DraftModelStatus(name="other")
    assert draft.name == "other"
    loaded = build(check_folder(folders / "other"))
    assert draft.weight_bytes == sum(array.nbytes for array in loaded.arrays) > 0


def test_speculation_by_a_draft_of_no_model_is_refused(folders, target) -> None:
    with pytest.raises(PunieError) as caught:
        choice(folders, target, speculation=Speculation.DRAFT)
    assert isinstance(caught.value.error, InvalidRequest)
    assert "draft_model" in caught.value.error.hint


def test_without_a_needed_draft_model_nothing_answers(folders, target) -> None:
    with pytest.raises(PunieError, match="no such model folder"):
        choice(folders, target, speculation=Speculation.DRAFT, draft_model="absent")


def test_the_model_answers_without_one_that_cannot_be_loaded(folders, target, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        draft, status = choice(folders, target, draft_model="absent")
    assert draft is None
    assert status.error.endswith("absent: no such model folder")
    assert not status.name
    (line,) = caplog.messages
    assert line.startswith("draft-model-not-used model=absent error=")


def test_weights_that_do_not_fit_leave_no_open_file(folders, target, changed: Path) -> None:
    rewrite(changed, "config.json", lambda content: content.update(num_hidden_layers=3))
    draft, status = choice(folders, target, draft_model=str(changed))
    assert draft is None
    assert "weights or configuration do not fit" in status.error
