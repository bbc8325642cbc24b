"""The scheduler, driven by an engine that only counts. Every plan of every test is checked there:
tokens of a step, rows, memory, nobody twice, nobody who is gone."""

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_model_host.engine_messages import Key
from punie_model_host.jobs import AGEING, HEAD_PATIENCE, NEXT, QUANTUM, Phase, Ticket
from punie_model_host.scheduler import ScheduleLimits, Scheduler
from punie_model_host.shares import MIN_CHUNK
from punie_protocol.errors import Overloaded, PunieError, Retry
from punie_protocol.messages.common import Priority
from tests.support.simulated_engine import STEP_S, SimulatedEngine

AGED = round(AGEING / STEP_S)
PATIENT = round(HEAD_PATIENCE / STEP_S)


def share(got: dict[str, int]) -> float:
    """The worst client's share of what all got, as a part of the fair one."""
    return min(got.values()) * len(got) / sum(got.values())


def window(engine: SimulatedEngine, steps: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return prompt tokens and decoded tokens of each client during the next steps."""
    clients = {row.ticket.client_id for row in engine.rows.values()}
    before = engine.prefilled.copy(), engine.decoded.copy()
    engine.run(steps)
    return (
        {client: engine.prefilled[client] - before[0][client] for client in clients},
        {client: engine.decoded[client] - before[1][client] for client in clients},
    )


class TestSteps:
    def test_a_prompt_is_computed_in_chunks_and_its_last_token_decodes(self) -> None:
        engine = SimulatedEngine(step_tokens=64, solo_tokens=64)
        key = engine.add("a", prompt=150, output=3)
        assert [engine.step().prefill for _ in range(3)] == [
            ((key, 64),),
            ((key, 64),),
            ((key, 21),),
        ]
        assert [engine.step().decode for _ in range(3)] == [(key,)] * 3
        assert engine.step().decode == ()
        assert len(engine.scheduler) == 0

    def test_rows_come_first_and_leave_a_prompt_the_rest(self) -> None:
        engine = SimulatedEngine(max_batch=40, step_tokens=64, solo_tokens=128)
        rows = [engine.add("a", prompt=1) for _ in range(30)]
        prompt = engine.add("a", prompt=1000)
        plan = engine.step()
        assert plan.decode == tuple(rows)
        assert plan.prefill == ((prompt, 34),)

    def test_rows_that_fill_a_step_leave_a_prompt_a_chunk(self) -> None:
        engine = SimulatedEngine(max_batch=64, step_tokens=64)
        for _ in range(60):
            engine.add("a", prompt=1)
        prompt = engine.add("a", prompt=1000)
        plan = engine.step()
        assert len(plan.decode) == 60
        assert plan.prefill == ((prompt, MIN_CHUNK),)

    def test_rows_never_fill_more_than_a_step(self) -> None:
        engine = SimulatedEngine(max_batch=64, step_tokens=32)
        for _ in range(50):
            engine.add("a", prompt=1)
        assert len(engine.step().decode) == 32
        engine.finish(within=1000)

    def test_alone_a_prompt_takes_larger_steps(self) -> None:
        engine = SimulatedEngine(step_tokens=64, solo_tokens=512)
        key = engine.add("a", prompt=1000)
        assert engine.step().prefill == ((key, 512),)

    def test_short_prompts_share_a_step(self) -> None:
        engine = SimulatedEngine(step_tokens=64, solo_tokens=128)
        keys = {engine.add("a", prompt=21) for _ in range(6)}
        assert dict(engine.step().prefill) == dict.fromkeys(keys, 20)

    def test_a_chunk_that_is_not_worth_a_pass_waits(self) -> None:
        engine = SimulatedEngine(step_tokens=64, solo_tokens=64)
        engine.add("a", prompt=51)
        long = engine.add("a", prompt=1000)
        assert long not in dict(engine.step().prefill)  # 14 tokens would be left for it
        assert dict(engine.step().prefill) == {long: 63}

    def test_cached_tokens_are_not_computed(self) -> None:
        engine = SimulatedEngine()
        part = engine.add("a", prompt=100, cached=60)
        whole = engine.add("a", prompt=100, cached=99)
        more_than_whole = engine.add("a", prompt=100, cached=100)
        plan = engine.step()
        assert set(plan.decode) == {whole, more_than_whole}
        assert plan.prefill == ((part, 39),)

    def test_cached_tokens_found_later_count_only_beyond_what_is_there(self) -> None:
        engine = SimulatedEngine(step_tokens=64, solo_tokens=64)
        key = engine.add("a", prompt=200)
        engine.step()
        engine.scheduler.cached(key, 32)
        assert engine.step().prefill == ((key, 64),)
        engine.cached(key, 180)
        engine.scheduler.cached(key, 64)
        assert engine.step().prefill == ((key, 19),)
        assert engine.step().decode == (key,)

    def test_with_drain_nobody_comes_in_and_who_is_in_goes_on(self) -> None:
        engine = SimulatedEngine()
        row, prompt = engine.add("a", prompt=1, output=50), engine.add("a", prompt=500, output=5)
        engine.step()
        late = engine.add("b", prompt=1)
        for _ in range(60):
            plan = engine.step(drain=True)
            assert late not in plan.decode
        assert {row, prompt} <= engine.gone
        assert engine.scheduler.queued == 1
        assert engine.step().decode == (late,)

    def test_where_requests_are_is_counted(self) -> None:
        engine = SimulatedEngine(max_batch=2)
        engine.add("a", prompt=1)
        engine.add("a", prompt=1000)
        engine.add("a", prompt=1)
        scheduler = engine.scheduler
        assert (scheduler.queued, scheduler.prefilling, scheduler.decoding) == (3, 0, 0)
        engine.step()
        assert (scheduler.queued, scheduler.prefilling, scheduler.decoding) == (1, 1, 1)
        assert scheduler.per_client() == {"a": (1, 2)}
        assert scheduler.totals == [101, 1100]
        assert len(scheduler) == 3
        assert Key(0, 0) in scheduler
        assert Key(9, 9) not in scheduler

    def test_limits_that_make_no_step_are_refused(self) -> None:
        for limits in (
            {"max_batch": 0},
            {"step_tokens": 8},
            {"step_tokens": 64, "solo_tokens": 32},
        ):
            with pytest.raises(ValueError, match="no step"):
                ScheduleLimits(**limits)  # ty: ignore[invalid-argument-type]  (no bool here)


class TestJoining:
    @pytest.mark.parametrize("prompt", [1, 2, 20, 5000])
    @pytest.mark.parametrize("client", ["a", "b"])
    def test_who_comes_is_in_the_next_step(self, prompt: int, client: str) -> None:
        engine = SimulatedEngine(max_batch=4)
        engine.add("a", prompt=10_000)
        engine.add("a", prompt=1, output=1000)
        engine.run(10)
        key = engine.add(client, prompt=prompt)
        plan = engine.step()
        assert key in plan.decode if prompt == 1 else key in dict(plan.prefill)

    def test_a_short_prompt_is_not_behind_a_long_one(self) -> None:
        engine = SimulatedEngine(step_tokens=64)
        engine.add("a", prompt=10_000)
        engine.add("c", prompt=1, output=1000)
        engine.run(10)
        key = engine.add("b", prompt=30)
        engine.step()
        assert key in engine.step().decode

    def test_a_long_prompt_waits_for_a_shorter_one_of_its_client(self) -> None:
        engine = SimulatedEngine(step_tokens=64)
        first = engine.add("a", prompt=1000)
        engine.step()
        second = engine.add("a", prompt=2000)
        while engine.rows[first].prompt:
            assert second not in engine.first
            engine.step()
        engine.step()
        assert second in engine.first

    def test_one_after_another_of_many_long_prompts_is_joined(self) -> None:
        engine = SimulatedEngine(step_tokens=128)
        for name in "abcd":
            engine.add(name, prompt=100_000)
        engine.run(50)
        for number in range(20):
            key = engine.add(f"new {number}", prompt=30, output=1)
            assert key in dict(engine.step().prefill)
            assert key in engine.step().decode

    def test_a_short_prompt_is_not_behind_other_clients_long_ones(self) -> None:
        engine = SimulatedEngine(step_tokens=128)
        for name in "abc":
            engine.add(name, prompt=100_000)
        for _ in range(20):
            engine.run(7)
            key = engine.add("a", prompt=30, output=1)
            assert key in dict(engine.step().prefill)

    def test_a_long_prompt_that_joins_leaves_half_a_step(self) -> None:
        engine = SimulatedEngine(solo_tokens=128)
        before = engine.add("a", prompt=10_000)
        engine.step()
        key = engine.add("b", prompt=20_000)
        assert dict(engine.step().prefill) == {key: 64, before: 64}

    def test_a_full_batch_of_one_client_keeps_no_other_out(self) -> None:
        engine = SimulatedEngine(max_batch=4)
        for _ in range(10):
            engine.add("greedy", prompt=1, output=10_000)
        engine.run(10)
        others = [engine.add(name, prompt=1, output=100) for name in "bcd"]
        assert set(others) <= set(engine.step().decode)

    def test_a_full_queue_is_refused_with_the_limit(self) -> None:
        engine = SimulatedEngine(max_queued=3, max_queued_client=2)
        engine.add("a")
        engine.add("a")
        with pytest.raises(PunieError, match="2 requests of client a wait") as caught:
            engine.add("a")
        assert isinstance(caught.value.error, Overloaded)
        assert caught.value.error.retry is Retry.LATER
        assert "at most 2" in caught.value.error.hint
        engine.add("b")
        with pytest.raises(PunieError, match="3 requests of all clients together wait"):
            engine.add("b")
        engine.step()
        engine.add("a")  # those who came in do not wait


class TestLeaving:
    @pytest.mark.parametrize("steps", [0, 1, 20])
    def test_who_is_removed_is_never_planned_again(self, steps: int) -> None:
        engine = SimulatedEngine()
        keys = [engine.add("a", prompt=n) for n in (1, 400, 5000)]
        engine.run(steps)
        for key in keys:
            engine.cancel(key)
            engine.step()
        assert engine.step() == engine.step()
        assert not engine.plan.decode
        assert not engine.plan.prefill

    def test_late_news_of_who_is_gone_change_nothing(self) -> None:
        engine = SimulatedEngine()
        key = engine.add("a", prompt=100)
        engine.step()
        engine.cancel(key)
        scheduler = engine.scheduler
        assert not scheduler.remove(key)
        scheduler.cached(key, 10)
        scheduler.prefilled(key, 10)
        scheduler.decoded(key)
        assert len(scheduler) == 0

    def test_a_key_may_come_again(self) -> None:
        engine = SimulatedEngine()
        ticket = Ticket(Key(1, 1), "a", Priority.INTERACTIVE, 1, 2, 0.0)
        engine.scheduler.add(ticket)
        with pytest.raises(ValueError, match="cannot be queued"):
            engine.scheduler.add(ticket)
        engine.scheduler.remove(ticket.key)
        engine.scheduler.add(ticket)

    def test_more_than_there_was_is_a_defect_and_said(self) -> None:
        engine = SimulatedEngine()
        key = engine.add("a", prompt=10)
        engine.scheduler.plan(0.0)
        with pytest.raises(ValueError, match="10 tokens of a prompt with 9"):
            engine.scheduler.prefilled(key, 10)

    def test_states_have_no_way_back(self) -> None:
        order = list(Phase)
        for phase, following in NEXT.items():
            assert all(order.index(one) > order.index(phase) for one in following)


class TestFairness:
    def test_eight_requests_decode_no_more_than_one(self) -> None:
        engine = SimulatedEngine()
        for _ in range(8):
            engine.add("greedy", prompt=1, output=10_000)
        engine.add("modest", prompt=1, output=10_000)
        for _ in range(5):
            _, decoded = window(engine, 100)
            assert share(decoded) == 1.0

    def test_eight_requests_prefill_no_more_than_one(self) -> None:
        engine = SimulatedEngine()
        for _ in range(8):
            engine.add("greedy", prompt=100_000)
        engine.add("modest", prompt=100_000)
        engine.run(5)
        for _ in range(5):
            prefilled, _ = window(engine, 40)
            assert share(prefilled) >= 0.95

    def test_a_flood_of_short_prompts_takes_no_more_than_a_share(self) -> None:
        engine = SimulatedEngine(max_batch=8)
        engine.add("modest", prompt=100_000)
        engine.add("other", prompt=100_000)
        for step in itertools.count():
            while engine.scheduler.per_client().get("greedy", (0, 0))[0] < 4:
                engine.add("greedy", prompt=31, output=1)
            engine.step()
            if step == 20:
                engine.prefilled.clear()
            if step == 420:
                break
        assert share(engine.prefilled) >= 0.95

    def test_rows_of_a_greedy_client_take_turns_and_change_seldom(self) -> None:
        engine = SimulatedEngine()
        greedy = [engine.add("greedy", prompt=1, output=10_000) for _ in range(8)]
        engine.add("modest", prompt=1, output=10_000)
        engine.run(8 * QUANTUM)
        assert engine.joined <= 9
        left = {engine.rows[key].output for key in greedy}
        assert left == {10_000 - QUANTUM}

    def test_clients_share_the_rows_that_there_are(self) -> None:
        engine = SimulatedEngine(max_batch=4)
        for name in "abcde":
            for _ in range(3):
                engine.add(name, prompt=1, output=10_000)
        _, decoded = window(engine, 5 * QUANTUM)
        assert share(decoded) >= 0.95
        assert sum(decoded.values()) == 4 * 5 * QUANTUM

    def test_a_client_alone_has_all_rows_and_gets_them_back_at_once(self) -> None:
        engine = SimulatedEngine(max_batch=8)
        for _ in range(8):
            engine.add("greedy", prompt=1, output=1000)
        assert len(engine.step().decode) == 8
        other = engine.add("modest", prompt=1, output=1000)
        assert len(engine.step().decode) == 2
        engine.run(10)
        engine.cancel(other)
        assert len(engine.step().decode) == 8

    def test_who_comes_back_has_saved_nothing_up(self) -> None:
        engine = SimulatedEngine()
        resting = engine.add("b", prompt=1, output=100_000)
        engine.add("a", prompt=100_000)
        engine.add("c", prompt=100_000)
        engine.run(200)
        engine.add("b", prompt=100_000)
        engine.run(3)
        prefilled, _ = window(engine, 90)
        assert share(prefilled) >= 0.95
        assert resting in engine.plan.decode

    def test_who_begins_to_decode_has_the_last_turn(self) -> None:
        engine = SimulatedEngine(step_tokens=32, solo_tokens=32)
        late = engine.add("greedy", prompt=40, output=1000)
        first = engine.add("greedy", prompt=1, output=1000)
        other = engine.add("modest", prompt=1, output=1000)
        for _ in range(QUANTUM):
            assert set(engine.step().decode) == {first, other}
        assert not engine.rows[late].prompt
        assert set(engine.step().decode) == {late, other}

    def test_a_client_with_long_answers_has_no_more_places(self) -> None:
        engine = SimulatedEngine(max_batch=2)
        for _ in range(5):
            engine.add("long", prompt=1, output=1000)
            engine.add("short", prompt=1, output=5)
        engine.step()
        while engine.scheduler.per_client()["short"][0]:
            assert engine.scheduler.per_client()["long"][1] == 1
            engine.step()

    def test_there_is_an_end_to_places(self) -> None:
        engine = SimulatedEngine(max_batch=2)
        for number in range(9):
            engine.add(f"c{number}", prompt=1)
            engine.add(f"c{number}", prompt=1, background=True)
        engine.step()
        assert len(engine.scheduler.totals) == 4
        engine.finish(within=18 * 100)

    def test_places_go_round_the_clients(self) -> None:
        engine = SimulatedEngine(max_batch=1)
        many = [engine.add("many", prompt=1, output=70) for _ in range(10)]
        engine.step()
        others = [engine.add(name, prompt=1, output=70) for name in "abc"]
        engine.finish(within=13 * 70)
        assert [key for key in engine.first if key in many] == many
        assert max(engine.first[key] for key in others) < engine.first[many[2]]


class TestBackground:
    def test_it_decodes_only_beside_nothing_interactive(self) -> None:
        engine = SimulatedEngine()
        back = [engine.add("b", prompt=1, output=1000, background=True) for _ in range(3)]
        assert set(engine.step().decode) == set(back)
        front = engine.add("a", prompt=200, output=20)
        plan = engine.step()
        assert plan.decode == ()
        assert [key for key, _ in plan.prefill] == [front]
        while front in engine.rows:
            assert not set(engine.step().decode) & set(back)
        assert set(engine.step().decode) == set(back)

    def test_it_is_computed_only_beside_nothing_interactive(self) -> None:
        engine = SimulatedEngine()
        back = engine.add("b", prompt=10_000, background=True)
        assert [key for key, _ in engine.step().prefill] == [back]
        engine.add("a", prompt=1, output=20)
        assert engine.step().prefill == ()

    def test_aged_it_gets_a_quantum_in_one_row(self) -> None:
        engine = SimulatedEngine(max_batch=4)
        back = [engine.add("b", prompt=1, output=10_000, background=True) for _ in range(3)]
        engine.step()
        front = {engine.add("a", prompt=1, output=100_000) for _ in range(4)}
        engine.run(AGED - 1)
        assert engine.decoded["b"] == 3
        for _ in range(3 * QUANTUM):
            rows = engine.step().decode
            assert len(set(rows) & set(back)) == 1
            assert len(set(rows) & front) == 3
        engine.step()
        assert set(engine.plan.decode) == front

    def test_aged_in_the_queue_it_comes_in_and_its_prompt_is_computed(self) -> None:
        engine = SimulatedEngine()
        engine.add("a", prompt=1, output=100_000)
        engine.step()
        back = engine.add("b", prompt=1000, output=10, background=True)
        engine.run(AGED)
        assert back not in engine.first
        engine.run(1000 // 60 + 15)
        assert back in engine.finished

    def test_it_takes_no_interactive_requests_place(self) -> None:
        engine = SimulatedEngine(max_batch=4)
        for _ in range(8):
            engine.add("a", prompt=1, output=1000, background=True)
        engine.run(3)
        front = [engine.add("a", prompt=1, output=1000) for _ in range(4)]
        assert set(engine.step().decode) == set(front)

    def test_it_goes_on_while_what_is_interactive_waits_for_its_memory(self) -> None:
        engine = SimulatedEngine(memory=1000)
        back = engine.add("b", prompt=1, output=600, background=True)
        engine.step()
        front = engine.add("a", prompt=1, output=600)
        for _ in range(599):
            assert engine.step().decode == (back,)
        assert engine.step().decode == (front,)

    def test_it_gets_out_of_the_way_of_who_waits_for_its_memory(self) -> None:
        engine = SimulatedEngine(memory=1000)  # two of 333 tokens, or three
        back = engine.add("b", prompt=241, output=60, cached=240, background=True)
        engine.step()
        front = engine.add("a", prompt=1, output=300)
        big = engine.add("a", prompt=234, output=100)
        for _ in range(PATIENT):
            assert engine.step().decode == (front,)
        assert set(engine.step().decode) == {back, front}
        engine.finish(within=1000)
        assert engine.first[big] == engine.finished[back] + 1 < engine.finished[front]


class TestMemory:
    @pytest.mark.parametrize("client", ["a", "b"])
    def test_who_does_not_fit_is_overtaken_for_a_while_and_no_longer(self, client: str) -> None:
        engine = SimulatedEngine(memory=1000, max_batch=8)
        engine.add(client, prompt=1, output=200)
        engine.step()
        big = engine.add("b", prompt=500, output=200)
        small: list[Key] = []
        while big in engine.rows and big not in engine.first:
            assert engine.steps < 1000
            if engine.scheduler.queued < 3:
                small.append(engine.add(f"c{engine.steps}", prompt=1, output=100))
            engine.step()
        overtook = [key for key in small if key in engine.first]
        assert overtook
        assert max(engine.first[key] for key in overtook) <= PATIENT + 2
        engine.finish(within=2000)

    def test_requests_of_a_client_do_not_overtake_each_other(self) -> None:
        engine = SimulatedEngine(memory=1000)
        engine.add("a", prompt=1, output=100)
        engine.step()
        big, small = engine.add("a", prompt=500, output=100), engine.add("a", prompt=1, output=10)
        engine.finish(within=1000)
        assert engine.first[big] <= engine.first[small]

    def test_alone_a_request_comes_in_whatever_is_predicted(self) -> None:
        engine = SimulatedEngine(memory=100)
        key = engine.add("a", prompt=500)
        assert engine.step().prefill == ((key, 128),)


SIZES = st.sampled_from([(1, 1), (1, 30), (20, 5), (300, 20), (600, 100)])
EVENTS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abcdef"), SIZES, st.booleans()),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(st.just("cached"), st.integers(0, 50), st.integers(0, 700)),
    st.tuples(st.just("run"), st.integers(1, 30)),
)


def apply(engine: SimulatedEngine, event: tuple) -> None:
    keys = list(engine.rows)
    match event:
        case ("add", client, (prompt, output), background):
            engine.add(client, prompt, output, background=background)
        case ("cancel", number) if keys:
            engine.cancel(keys[number % len(keys)])
        case ("cached", number, tokens) if keys:
            engine.cached(keys[number % len(keys)], tokens)
        case ("run", steps):
            engine.run(steps)


@given(
    events=st.lists(EVENTS, max_size=60),
    max_batch=st.sampled_from([1, 2, 5, 16]),
    step_tokens=st.sampled_from([16, 40, 128]),
    memory=st.sampled_from([700, 2000, 100_000]),
)
def test_whatever_happens_every_plan_holds_and_everything_ends(
    events: list[tuple], max_batch: int, step_tokens: int, memory: int
) -> None:
    engine = SimulatedEngine(memory, max_batch=max_batch, step_tokens=step_tokens)
    for event in events:
        apply(engine, event)
    work = sum(row.prompt + row.output for row in engine.rows.values())
    engine.finish(within=work + 10)
    assert len(engine.scheduler) == 0
    assert engine.scheduler.per_client() == {}


type Attack = Callable[[int], tuple[str, int, int, bool]]
"""What comes at a step: client, prompt, output, background."""

ATTACKS: dict[str, Attack] = {
    "new clients, short prompts": lambda step: (f"c{step}", 20, 1, False),
    "new clients, single tokens": lambda step: (f"c{step}", 1, 1, False),
    "new clients, long prompts": lambda step: (f"c{step}", 400, 30, False),
    "one client, short prompts": lambda _: ("c", 20, 1, False),
    "one client, long answers": lambda _: ("c", 1, 200, False),
    "the victim's own short prompts": lambda _: ("victim", 20, 1, False),
    "both priorities": lambda step: (f"c{step % 9}", 100, 30, step % 2 == 0),
    "background": lambda step: (f"c{step % 3}", 50, 50, True),
}


@pytest.mark.parametrize("background", [False, True], ids=["interactive", "background"])
@pytest.mark.parametrize("memory", [1200, 1_000_000])
@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nobody_starves(attack: str, max_batch: int, memory: int, background: bool) -> None:
    engine = SimulatedEngine(
        memory, max_batch=max_batch, step_tokens=32, solo_tokens=32, max_queued=12
    )
    for step in range(50):
        flood(engine, attack, step)
    victim = engine.add("victim", prompt=600, output=100, background=background)
    # Those before it, twice for the slowest, a wait for each time it has to age, and itself.
    turns = 2 + 100 // QUANTUM
    bound = 30 * 250 + turns * AGED + (600 // MIN_CHUNK + 100) * 2 * max_batch
    for step in range(50, 50 + bound):
        if victim not in engine.rows:
            break
        flood(engine, attack, step)
    assert victim in engine.finished


def flood(engine: SimulatedEngine, attack: str, step: int) -> None:
    client, prompt, output, background = ATTACKS[attack](step)
    while engine.scheduler.queued < engine.limits.max_queued - 1:
        engine.add(client, prompt, output, background=background)
    engine.step()


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_hundreds_of_requests_of_many_clients_all_end(seed: int) -> None:
    chance = random.Random(seed)
    engine = SimulatedEngine(max_queued=256, memory=20_000, step_tokens=128)
    keys: set[Key] = set()
    for number in range(256):
        prompt, output = chance.choice([(10, 5), (200, 20), (1000, 2), (1, 60)])
        keys.add(engine.add(f"c{number % 64}", prompt, output, background=chance.random() < 0.2))
    engine.finish(within=sum(row.prompt + row.output for row in engine.rows.values()))
    assert engine.finished.keys() == keys


def whole_prompts(*prompts: int, rows: int = 0) -> dict[Key, int]:
    """Return the first chunks of new prompts of so many tokens, of a client each, beside rows."""
    limits = ScheduleLimits(step_tokens=200, solo_tokens=400, whole_prompts=True)
    scheduler = Scheduler(limits, lambda _: True)
    for n, tokens in enumerate([1] * rows + list(prompts)):
        scheduler.add(Ticket(Key(1, n), f"c{n}", Priority.INTERACTIVE, tokens + 1, tokens + 9, 0.0))
        if n < rows:
            scheduler.plan(0.0)
            scheduler.prefilled(Key(1, n), 1)
    return dict(scheduler.plan(1.0).prefill)


def test_a_new_prompt_is_not_cut_when_twice_the_budget_has_it() -> None:
    assert list(whole_prompts(330, rows=4).values()) == [330]
    assert sum(whole_prompts(450, rows=4).values()) <= 200


def test_beside_a_chunk_none_comes_that_is_small_and_ends_nothing() -> None:
    chunks = whole_prompts(263, 263, 263, rows=4)
    assert list(chunks.values()) == [263]


def test_while_more_prompts_wait_than_rows_decode_they_get_what_they_get_alone() -> None:
    assert list(whole_prompts(263, 263, 263, rows=1).values()) == [263, 263]
    assert sum(whole_prompts(2000, rows=1).values()) < 200
