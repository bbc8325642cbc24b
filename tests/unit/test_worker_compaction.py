"""What of a conversation is sent: pure layout and room, and the `Compactor` that moves them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage

from punie_protocol.errors import (
    ContextOverflow,
    Internal,
    LinkClosed,
    MessageTooLarge,
    ModelFault,
    PunieError,
    RemoteError,
)
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    AssistantMessage,
    ToolMessage,
    UserMessage,
)
from punie_workers.chat import size, to_chat
from punie_workers.compaction import LEFT_OUT, Compactor
from punie_workers.layout import MIN_CUT, NOTHING, Compaction, Layout, view
from punie_workers.room import TRIGGER, room
from punie_workers.summaries import summary_request, summary_tokens

PER_TOKEN = 4


def model(style: PromptStyle = PromptStyle.TOOLS, window: int = 8000) -> ModelInfo:
    return ModelInfo(
        name="scripted",
        folder="",
        context_window=window,
        prompt_style=style,
        tool_call_format="qwen3_coder",
        max_output_tokens=1000,
    )


def tokens(messages: Sequence[ModelMessage]) -> int:
    return sum(map(size, messages)) // PER_TOKEN + 1


class Talk:
    """A conversation that grows as a turn makes it grow."""

    def __init__(self) -> None:
        self.messages: list[ModelMessage] = []
        self._calls = 0

    def prompt(self, text: str) -> None:
        """As pydantic-ai has it: next to another request, it is merged into that."""
        part = UserPromptPart(text)
        if self.messages and isinstance(last := self.messages[-1], ModelRequest):
            self.messages[-1] = ModelRequest(parts=[*last.parts, part])
        else:
            self.messages.append(ModelRequest(parts=[part]))

    def answer(self, text: str, calls: int = 0, *, asked: int = 0) -> None:
        names = [f"c{self._calls + n}" for n in range(calls)]
        self._calls += calls
        parts = [ToolCallPart("read_file", '{"path": "x"}', name) for name in names]
        usage = RequestUsage(input_tokens=asked, output_tokens=1)
        self.messages.append(
            ModelResponse(parts=[TextPart(text), *parts], usage=usage, model_name="scripted")
        )

    def results(self, *texts: str) -> None:
        last = self.messages[-1]
        assert isinstance(last, ModelResponse)
        parts = [
            ToolReturnPart(call.tool_name, text, call.tool_call_id)
            for call, text in zip(last.tool_calls, texts, strict=True)
        ]
        self.messages.append(ModelRequest(parts=parts))

    def steps(self, *texts: str) -> None:
        for text in texts:
            self.answer("look", 1)
            self.results(text)


class Rig:
    """A compactor, and what it said and stored."""

    def __init__(
        self, compaction: Compaction | None = None, summary: str | PunieError | None = None
    ) -> None:
        self.notices: list[str] = []
        self.stored: list[Compaction] = []
        self.asked: list[str] = []
        self.compactor = Compactor(compaction, self.notices.append, self._store)
        if summary is not None:
            self.compactor.summarize = self._summarizer(summary)

    async def _store(self, compaction: Compaction) -> None:
        self.stored.append(msgspec.json.decode(msgspec.json.encode(compaction), type=Compaction))

    def _summarizer(self, summary: str | PunieError) -> Callable[..., Awaitable[str]]:
        async def summarize(messages: list[ModelMessage]) -> str:
            (asked,) = to_chat(messages)
            assert isinstance(asked, UserMessage)
            self.asked.append(asked.text)
            if isinstance(summary, PunieError):
                raise summary
            return summary

        return summarize

    def fit(
        self, talk: Talk, info: ModelInfo, overflow: PunieError | None = None
    ) -> list[ModelMessage]:
        return asyncio.run(self.compactor.fit(talk.messages, info, overflow=overflow))


def overflow(actual: int, limit: int) -> RemoteError:
    return RemoteError(ContextOverflow(message="too long", tokens=actual, limit=limit))


def texts(messages: Sequence[ModelMessage]) -> list[str]:
    return [one.text for one in to_chat(messages) if isinstance(one, ToolMessage)]


def test_the_oldest_results_go_first() -> None:
    talk, rig = Talk(), Rig(summary="never asked for")
    talk.prompt("go")
    talk.steps(*(f"{n}" * 4000 for n in range(7)))
    sent = rig.fit(talk, model())
    assert [len(text) for text in texts(sent)][4:] == [4000] * 3
    assert texts(sent)[0] == (
        "[result of read_file left out to save room: 4,000 characters; "
        "call it again if you need it]"
    )
    (notice,) = rig.notices
    assert notice == (
        "older tool results left out to fit the model's context window "
        "(4 results, about 4,300 tokens)"
    )
    assert rig.asked == []
    assert [one.results for one in rig.stored] == [4]
    assert texts(talk.messages) == [f"{n}" * 4000 for n in range(7)], "the history has changed"
    assert rig.fit(talk, model()) == sent
    assert len(rig.stored) == 1


def test_the_last_two_steps_stay_even_when_the_goal_is_missed() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("go")
    talk.steps("a" * 8000, "b" * 8000, "c" * 8000)
    sent = texts(rig.fit(talk, model()))
    assert sent[0].startswith("[result of")
    assert sent[1:] == ["b" * 8000, "c" * 8000]


def test_short_results_stay_as_they_are() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("go")
    talk.steps("ok", *("x" * 9000 for _ in range(4)))
    sent = rig.fit(talk, model())
    assert texts(sent)[0] == "ok"
    assert texts(sent)[1].startswith("[result of")


def test_nothing_happens_below_the_mark() -> None:
    talk, rig = Talk(), Rig(summary="x")
    talk.prompt("go")
    talk.steps("x" * 10_000)
    assert to_chat(rig.fit(talk, model())) == to_chat(talk.messages)
    assert (rig.notices, rig.stored) == ([], [])


def test_the_mark_is_where_the_model_says_it_is() -> None:
    """Two conversations of one length: the tokens that the last answer cost decide."""
    for asked, is_near in ((3000, False), (6500, True)):
        talk, rig = Talk(), Rig()
        talk.prompt("go")
        talk.steps(*("x" * 4000 for _ in range(4)))
        talk.answer("hm", 1, asked=asked)
        talk.results("short")
        rig.fit(talk, model())
        assert bool(rig.stored) is is_near, asked


def test_a_report_from_before_a_compaction_does_not_count() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("go")
    talk.steps(*("x" * 4000 for _ in range(6)))
    talk.answer("hm", 1, asked=6500)
    talk.results("short")
    rig.fit(talk, model())
    sent = rig.fit(talk, model())
    assert len(rig.stored) == 1
    again = Rig(rig.stored[-1])
    assert again.fit(talk, model()) == sent
    assert again.stored == []


def test_old_turns_are_summed_up_by_the_model() -> None:
    talk, rig = Talk(), Rig(summary="the user wants `p1` and `p2`")
    for n in range(4):
        talk.prompt(f"p{n} " + "words " * 1500)
        talk.answer(f"a{n}")
    sent = to_chat(rig.fit(talk, model()))
    assert isinstance(sent[0], UserMessage)
    assert "the user wants `p1` and `p2`" in sent[0].text
    assert "p3 words" in sent[0].text
    assert sent[1:] == [AssistantMessage(text="a3")]
    assert rig.notices == ["earlier conversation summarised: 3 turns"]
    (asked,) = rig.asked
    assert all(f"You: a{n}" in asked for n in range(3))
    assert "a3" not in asked
    assert len(asked) < 8000 * 3.6
    talk.prompt("p4 " + "words " * 3000)
    talk.answer("a4")
    rig.fit(talk, model())
    assert "Record so far: the user wants" in rig.asked[-1]
    assert [one.turns for one in rig.stored] == [3, 4]


@pytest.mark.parametrize("failure", [ModelFault(message="no"), Internal(message="gone")])
def test_without_a_summary_the_turns_are_left_out_and_it_is_said(
    failure: ModelFault | Internal,
) -> None:
    talk, rig = Talk(), Rig(summary=RemoteError(failure))
    for n in range(4):
        talk.prompt(f"p{n} " + "words " * 1500)
        talk.answer(f"a{n}")
    sent = to_chat(rig.fit(talk, model()))
    assert rig.notices == [LEFT_OUT]
    assert isinstance(sent[0], UserMessage)
    assert "could not be summed up" in sent[0].text
    silent = Rig(summary=" \n")
    silent.fit(talk, model())
    assert silent.notices == [LEFT_OUT]


def test_a_lost_host_and_a_failed_store_leave_everything_as_it_was() -> None:
    talk, rig = Talk(), Rig(summary=LinkClosed("model host"))
    for n in range(4):
        talk.prompt(f"p{n} " + "words " * 1500)
        talk.answer(f"a{n}")
    with pytest.raises(LinkClosed):
        rig.fit(talk, model())
    assert (rig.notices, rig.stored) == ([], [])

    async def refuse(_: Compaction) -> None:
        raise LinkClosed("supervisor")

    notices: list[str] = []
    compactor = Compactor(None, notices.append, refuse)
    with pytest.raises(LinkClosed):
        asyncio.run(compactor.fit(talk.messages, model()))
    assert notices == []


def test_a_model_that_learned_its_tools_loses_whole_turns() -> None:
    talk, rig = Talk(), Rig(summary="never asked for")
    for n in range(4):
        talk.prompt(f"p{n}")
        talk.steps("x" * 500)
        talk.answer(f"a{n}")
    sent = to_chat(rig.fit(talk, model(PromptStyle.LEARNED), overflow(1400, 1000)))
    assert sent[0] == UserMessage(text="p2")
    assert texts(view(talk.messages, rig.stored[-1])) == ["x" * 500] * 2
    assert rig.notices == [LEFT_OUT]
    assert rig.asked == []


def test_the_last_result_of_the_last_turn_is_cut_at_the_very_end() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("old")
    talk.answer("old")
    talk.prompt("go")
    talk.steps("a" * 9000, "b" * 9000, "c" * 90_000)
    sent = rig.fit(talk, model(), overflow(27_000, 8000))
    first, second, last = texts(sent)
    assert first.startswith("[result of")
    assert second.startswith("[result of")
    assert last.startswith("c" * 10_000)
    assert "[cut to save room: " in last
    assert tokens(sent) <= 8000
    assert any("the last tool result cut" in notice for notice in rig.notices)
    shorter = rig.fit(talk, model(), overflow(8200, 8000))
    assert len(texts(shorter)[2]) < len(last)


def test_what_cannot_be_made_to_fit_says_what_to_do() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("x" * 100_000)
    with pytest.raises(PunieError, match="27,000 tokens, the model's window 8,000") as raised:
        rig.fit(talk, model(), overflow(27_000, 8000))
    assert isinstance(raised.value.error, ContextOverflow)
    assert "start a new session" in raised.value.error.hint
    with pytest.raises(PunieError, match="nothing more can be left out"):
        rig.fit(talk, model(), MessageTooLarge("generate", 2000, 1000))


def test_a_prompt_that_is_far_too_long_costs_nothing_of_what_was_said() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("first")
    talk.steps("x" * 100)
    talk.prompt("x" * 1_000_000)
    with pytest.raises(PunieError, match="nothing more can be left out"):
        rig.fit(talk, model(), overflow(250_000, 8000))
    assert rig.stored == []
    assert rig.notices == []


def test_a_failure_about_something_else_is_raised_again() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("x")
    error = RemoteError(ModelFault(message="no"))
    with pytest.raises(RemoteError) as raised:
        rig.fit(talk, model(), error)
    assert raised.value is error


def test_a_refusal_without_figures_is_believed() -> None:
    talk, rig = Talk(), Rig()
    talk.prompt("go")
    talk.steps(*("x" * 2000 for _ in range(6)))
    rig.fit(talk, model(), overflow(0, 0))
    assert rig.stored[-1].results == 4


def test_a_summary_is_asked_for_within_the_window() -> None:
    talk = Talk()
    for n in range(50):
        talk.prompt(f"p{n} " + "x" * 5000)
        talk.steps("y" * 30_000)
        talk.answer(f"a{n}")
    for room_for in (300, 3000, 30_000, 300_000):
        (asked,) = to_chat(summary_request(talk.messages, "before " * 400, room_for))
        assert isinstance(asked, UserMessage)
        text = asked.text
        assert len(text) <= max(room_for, 700)
        assert room_for < 3000 or "a49" in text
        assert room_for < 300_000 or "p0 xxx" in text
    assert summary_tokens(model()) == 1000
    assert summary_tokens(model(window=4000)) == 500


RESULT = st.sampled_from([0, 10, 300, 2000, 6000, 12_000])
STEP = st.lists(RESULT, min_size=1, max_size=3)
TURN = st.tuples(st.sampled_from([5, 500, 4000]), st.lists(STEP, max_size=6), st.booleans())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(TURN, min_size=1, max_size=8),
    st.sampled_from(PromptStyle),
    st.sampled_from(["the summary " * 20, RemoteError(ModelFault(message="no")), None]),
)
def test_whatever_is_said_fits_and_its_prefix_is_stable(
    turns: list[tuple[int, list[list[int]], bool]],
    style: PromptStyle,
    summary: str | PunieError | None,
) -> None:
    """A host that counts and refuses: each request is the last one and more, unless a compaction
    was said and stored between them, and what went stays away."""
    talk, rig, info = Talk(), Rig(summary=summary), model(style)
    before: list[AnyChatMessage] = []
    compaction = NOTHING

    def ask() -> int:
        nonlocal before, compaction
        sent = rig.fit(talk, info)
        for _ in range(30):
            if (actual := tokens(sent)) < info.context_window:
                break
            sent = rig.fit(talk, info, overflow(actual, info.context_window))
        assert tokens(sent) < info.context_window
        now = rig.stored[-1] if rig.stored else NOTHING
        chat = to_chat(sent)
        if now == compaction:
            assert chat[: len(before)] == before
        else:
            assert rig.notices
            assert (now.turns, now.results, -now.cut) >= (
                compaction.turns,
                compaction.results,
                -compaction.cut if now.results == compaction.results else -(10**9),
            )
        calls = [
            call.call_id
            for one in chat
            if isinstance(one, AssistantMessage)
            for call in one.tool_calls
        ]
        assert calls == [one.call_id for one in chat if isinstance(one, ToolMessage)]
        assert view(talk.messages, now) == sent
        before, compaction = chat, now
        return tokens(sent)

    for number, (length, steps, is_answered) in enumerate(turns):
        talk.prompt(f"p{number} " + "w" * length)
        for step in steps:
            talk.answer("look", len(step), asked=ask())
            talk.results(*("r" * length for length in step))
        if is_answered or not steps:
            asked = ask()
            assert any(f"p{number} " in one.text for one in before if isinstance(one, UserMessage))
            talk.answer(f"a{number}", asked=asked)


@given(
    st.lists(TURN, min_size=1, max_size=6),
    st.integers(0, 20),
    st.integers(0, 7),
    st.integers(0, 500),
)
def test_the_length_of_a_view_is_known_without_making_it(
    turns: list[tuple[int, list[list[int]], bool]], results: int, left_out: int, cut: int
) -> None:
    talk = Talk()
    for length, steps, _ in turns:
        talk.prompt("w" * length)
        for step in steps:
            talk.answer("look", len(step))
            talk.results(*("r" * length for length in step))
        talk.answer("a")
    layout = Layout(talk.messages)
    compaction = Compaction(results=results, turns=left_out, cut=cut)
    made = sum(map(size, layout.view(compaction)))
    note = 100 if cut else 0
    assert made - note <= layout.size(compaction) <= made


def test_the_room_is_the_window_without_the_answer() -> None:
    talk = Talk()
    talk.prompt("x" * 3600)
    near = room(Layout(talk.messages), NOTHING, model(window=4000), 0)
    assert near.limit == pytest.approx(3000 * 3.6)
    assert near.trigger == pytest.approx(3000 * 3.6 * TRIGGER)
    with_instructions = room(Layout(talk.messages), NOTHING, model(window=4000), 3600)
    assert with_instructions.limit == pytest.approx(2000 * 3.6)
    assert MIN_CUT < near.goal < near.enough < near.trigger


def test_a_window_that_the_instructions_nearly_fill_still_leaves_turns_out() -> None:
    talk, rig, info = Talk(), Rig(), model(window=4096)
    rig.compactor.is_checked = False
    rig.compactor.overhead = 7000  # more than a third of the tokens
    for number in range(5):
        talk.prompt(f"p{number} " + "w" * 13_600)
        sent = rig.fit(talk, info)
        (asked,) = to_chat(sent)
        assert isinstance(asked, UserMessage)
        assert [n for n in range(5) if f"p{n} w" in asked.text] == [number]
        talk.answer("a", asked=4658)
    assert [one.turns for one in rig.stored] == [1, 2, 3, 4]


def test_a_prompt_far_above_an_unchecked_window_is_not_returned() -> None:
    talk, rig = Talk(), Rig()
    rig.compactor.is_checked = False
    talk.prompt("first")
    talk.answer("a", asked=100)
    talk.prompt("w" * 405_000)
    with pytest.raises(PunieError) as caught:
        rig.fit(talk, model(window=4096))
    error = caught.value.error
    assert isinstance(error, ContextOverflow)
    assert error.tokens > 40_000
    assert error.limit == 4096
    assert "new session" in error.hint
    assert (rig.stored, rig.notices) == ([], [])
    rig.compactor.is_checked = True  # who counts exactly has the last word
    assert sum(map(size, rig.fit(talk, model(window=4096)))) > 405_000
