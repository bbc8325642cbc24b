"""Prompts that are gone on with as they are, and answers that begin as they have to."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from punie_model_host.answer import Call, Malformed, Text
from punie_model_host.calls.formats import ToolCallFormat
from punie_model_host.facts import ModelFacts
from punie_model_host.folder import check_folder
from punie_model_host.forced_call import opening
from punie_model_host.intake import LONG, Intake
from punie_model_host.loading import build
from punie_model_host.parsers import OneCall, Verbatim
from punie_model_host.prepare import Prepared, Reader
from punie_model_host.toolcalls import AnswerParser
from punie_protocol.errors import ContextOverflow, InvalidRequest, PunieError
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_host import Generate, ToolSchema, UserMessage
from tests.support.tiny_model import TEMPLATE, make_tiny_model

LOOK = ToolSchema(name="look", description="", parameters='{"type": "object", "properties": {}}')
XML, JSON = ToolCallFormat.QWEN3_CODER, ToolCallFormat.JSON
WINDOW = 1024


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context_window=WINDOW)
    return build(check_folder(folder)).facts


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    """A model whose template has it think first."""
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    template = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert template != TEMPLATE
    (folder / "chat_template.jinja").write_text(template)
    return build(check_folder(folder)).facts


def request(**fields: Any) -> Generate:
    empty: dict[str, Any] = {"messages": []} if "prompt" in fields else {}
    asked: dict[str, Any] = {"messages": [UserMessage(text="hi")]} | empty | fields
    return Generate(
        request_id=1, client_id="c", conversation_id="c", priority=Priority.INTERACTIVE, **asked
    )


def prepare(facts: ModelFacts, **fields: Any) -> Prepared:
    return Reader(facts).prepare(request(**fields))


# raw prompts


def test_a_raw_prompt_is_what_it_says(facts: ModelFacts):
    chat = prepare(facts)
    raw = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    text = prepare(facts, prompt=raw)
    assert text.tokens == chat.tokens, "control tokens are tokens"
    assert prepare(facts, prompt=chat.tokens).tokens == chat.tokens
    assert (text.opening, text.thinking, text.schemas, text.begun) == (0, False, {}, "")
    assert text.max_tokens == min(facts.profile.sampling.max_tokens, WINDOW - len(text.tokens))


@pytest.mark.parametrize("prompt", ["", []])
def test_a_raw_prompt_has_tokens(facts: ModelFacts, prompt: object):
    with pytest.raises(PunieError, match=r"^prompt: it has no tokens") as caught:
        prepare(facts, prompt=prompt)
    assert isinstance(caught.value.error, InvalidRequest)


@pytest.mark.parametrize("wrong", [-1, 10**6, 2**70])
def test_a_raw_prompt_has_the_model_s_tokens(facts: ModelFacts, wrong: int):
    with pytest.raises(PunieError, match=f"^prompt: the model has no token {wrong}"):
        prepare(facts, prompt=[1, wrong])
    assert prepare(facts, prompt=[0, facts.vocabulary - 1]).tokens == [0, facts.vocabulary - 1]


@pytest.mark.parametrize("prompt", ["x" * WINDOW, "x" * 5_000_000, [1] * WINDOW, [-1] * 5_000_000])
def test_a_raw_prompt_fits_the_window(facts: ModelFacts, prompt: object):
    with pytest.raises(PunieError, match=f"^the prompt has .* window {WINDOW}") as caught:
        prepare(facts, prompt=prompt)
    assert isinstance(caught.value.error, ContextOverflow)
    room = prepare(facts, prompt=[1] * (WINDOW - 1))
    assert room.max_tokens == 1


@pytest.mark.parametrize("prompt", ["x" * LONG, [1] * LONG])
def test_a_long_prompt_goes_to_the_slow_lane(prompt: Any):
    """Seen from outside: its lane alone has work."""
    intake = Intake()
    try:
        assert intake.lane_of(request(prompt=prompt)) is not intake.lane_of(request(prompt="x"))
        assert intake.lane_of(request()) is intake.lane_of(request(prompt=[1]))
    finally:
        intake.close()


def test_a_folder_that_is_loaded_again_is_read_again(tmp_path: Path):
    """Its facts are the same, and its template is another."""
    folder = make_tiny_model(tmp_path / "tiny")

    async def ask(intake: Intake, facts: ModelFacts) -> object:
        answers: asyncio.Queue[object] = asyncio.Queue(1)
        intake.prepare(request(), facts, answers.put_nowait)
        async with asyncio.timeout(10):
            return await answers.get()

    async def main() -> None:
        intake = Intake()
        try:
            for template in (TEMPLATE, TEMPLATE + "now"):
                (folder / "chat_template.jinja").write_text(template)
                facts = build(check_folder(folder)).facts
                got = await ask(intake, facts)
                assert isinstance(got, Prepared)
                assert got.tokens == prepare(facts).tokens
        finally:
            intake.close()

    asyncio.run(main())


def test_nothing_is_looked_for_in_a_raw_answer():
    parser = Verbatim()
    said = ["<tool_call>\n<function=look>", " <think> ", "", "x\n"]
    pieces = [piece for text in said for piece in parser.feed(text)] + parser.finish(cut=True)
    assert pieces == [Text(said[0]), Text(said[1]), Text(said[3])]
    assert parser.calls == 0


# calls that have to be


@pytest.mark.parametrize(
    ("format", "name", "thinks", "begun"),
    [
        (XML, "", False, "<tool_call>\n"),
        (XML, "look", False, "<tool_call>\n<function=look>\n"),
        (JSON, "", False, "<tool_call>\n"),
        (JSON, "look", False, '<tool_call>\n{"name": "look", "arguments":'),
        (XML, "", True, "\n</think>\n\n<tool_call>\n"),
    ],
)
def test_how_a_call_begins(format: ToolCallFormat, name: str, thinks: bool, begun: str):
    assert opening(format, name, ["look"], thinking=thinks) == begun


@pytest.mark.parametrize(
    ("name", "known"), [("other", ["look"]), ("look", []), ("", []), ("a>b", ["a>b"]), ('"', ['"'])]
)
def test_only_a_known_tool_can_be_asked_for(name: str, known: list[str]):
    with pytest.raises(PunieError, match=r"^a call cannot be demanded: there is no tool"):
        opening(XML, name, known, thinking=False)


def test_the_beginning_is_part_of_the_prompt(facts: ModelFacts):
    free = prepare(facts, tools=[LOOK])
    forced = prepare(facts, tools=[LOOK], must_call="look")
    assert forced.begun == "<tool_call>\n<function=look>\n"
    added = forced.tokens[len(free.tokens) :]
    assert forced.tokens[: len(free.tokens)] == free.tokens
    assert added == prepare(facts, prompt=forced.begun).tokens
    assert forced.opening == free.opening


def test_who_has_to_call_does_not_think(thinking: ModelFacts):
    assert prepare(thinking, tools=[LOOK]).thinking
    forced = prepare(thinking, tools=[LOOK], must_call="")
    assert not forced.thinking
    assert forced.begun.startswith("\n</think>")


NEVER = (ToolCallFormat.KIMI_K3, ToolCallFormat.MINICPM5)
BY_NAME = (XML, JSON, ToolCallFormat.MINIMAX_M2, ToolCallFormat.MUSE_SPARK)


@pytest.mark.parametrize("format", list(ToolCallFormat))
@pytest.mark.parametrize("name", ["", "look"])
def test_formats_that_cannot_be_begun_say_so(facts: ModelFacts, format: ToolCallFormat, name: str):
    profile = structs.replace(facts.profile, tool_call_format=format)
    other = replace(facts, profile=profile)
    assert prepare(other, tools=[LOOK]).begun == ""
    if (name and format not in BY_NAME) or format in NEVER:
        with pytest.raises(PunieError, match=f"^a call cannot be demanded .*{format.value}"):
            prepare(other, tools=[LOOK], must_call=name)
    else:
        assert prepare(other, tools=[LOOK], must_call=name).begun


ONE = {"look": {"a": {"type": "string"}}}
REST = {
    XML: "<function=look>\n§<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    JSON: '{"name": "look", "arguments":§ {"a": "1"}}\n</tool_call>',
    ToolCallFormat.GLM47: "look\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    ToolCallFormat.LONGCAT: "look\n<longcat_arg_key>a</longcat_arg_key>\n"
    "<longcat_arg_value>1</longcat_arg_value>\n</longcat_tool_call>",
    ToolCallFormat.MINIMAX_M2: '<invoke name="look">\n§<parameter name="a">1</parameter>\n'
    "</invoke>\n</minimax:tool_call>",
    ToolCallFormat.MUSE_SPARK: '<atem:invoke name="look">\n§<atem:parameter name="a">1'
    "</atem:parameter>\n</atem:invoke>\n</atem:function_calls>",
    ToolCallFormat.KIMI_K2: "<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>"
    '{"a": "1"}<|tool_call_end|><|tool_calls_section_end|>',
    ToolCallFormat.GEMMA4: 'call:look{a:<|"|>1<|"|>}<tool_call|>',
    ToolCallFormat.FUNCTION_GEMMA: "call:look{a:<escape>1<escape>}<end_function_call>",
    ToolCallFormat.PYTHONIC: "[look(a='1')]<|tool_call_end|>",
    ToolCallFormat.MISTRAL: 'look[ARGS]{"a": "1"}',
}
"""What a model goes on with; from the sign on, when the tool was named."""


@pytest.mark.parametrize(
    ("format", "name"),
    [(format, "") for format in REST] + [(format, "look") for format in BY_NAME],
)
def test_what_the_model_goes_on_with_is_the_call(format: ToolCallFormat, name: str):
    begun = opening(format, name, ["look"], thinking=False)
    rest = REST[format].partition("§")[2] if name else REST[format].replace("§", "")
    parser = AnswerParser(ONE, format)
    assert parser.feed(begun) == []
    [call] = parser.feed(rest) + parser.finish()
    assert isinstance(call, Call)
    assert (call.name, json.loads(call.arguments)) == ("look", {"a": "1"})


# one call

BLOCK = "<tool_call>\n<function=look>\n</function>\n</tool_call>"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_behind_the_first_call_nothing_comes(size: int):
    said = f"I look. {BLOCK} {BLOCK} and <tool_call>nonsense</tool_call>"
    parser = OneCall(AnswerParser(ONE, XML))
    cut = [said[at : at + size] for at in range(0, len(said), size)]
    pieces = [piece for text in cut for piece in parser.feed(text)] + parser.finish()
    texts = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    assert texts.strip() == "I look."
    assert isinstance(pieces[-1], Call)
    assert [type(piece) for piece in pieces].count(Call) == parser.calls == 1


def test_a_broken_first_call_is_still_told():
    parser = OneCall(AnswerParser(ONE, XML))
    pieces = parser.feed("<tool_call>nonsense") + parser.finish()
    assert isinstance(pieces[-1], Malformed)
    assert parser.calls == 0
