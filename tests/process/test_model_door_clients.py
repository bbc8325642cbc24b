"""The HTTP door as programs use it: the official client and pydantic-ai, with real models, in tool
loops whose tools really run."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.support.served_host import DEADLINE, KEY, ServedHost, served
from tests.support.tiny_model import make_tiny_model
from tests.support.worker_case import Case, running

pytestmark = pytest.mark.timeout(60)

LOOPS = 45.0
"""Seconds for a whole tool loop."""
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
CALL = "<tool_call>\n<function=look>\n<parameter=path>\n{}\n</parameter>\n</function>\n</tool_call>"
TYPED = (
    "<function=final_result>\n<parameter=path>\na.py\n</parameter>\n"
    "<parameter=line>\n7\n</parameter>\n</function>\n</tool_call>"
)
CODE: Any = {
    "type": "function",
    "function": {
        "name": "execute_code",
        "description": "Run a program.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string"}},
            "required": ["code"],
            "additionalProperties": False,
        },
    },
}
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}

type Test = Callable[[ServedHost], Awaitable[None]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: one of random weights, one that calls a tool twice, one that goes on for ever."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "random", context_window=4096)
    make_tiny_model(folder / "twice", says=[CALL.format("a.py"), CALL.format("b.py")])
    make_tiny_model(folder / "parameter", says=[CALL.format("x").split("look>\n")[1]])
    make_tiny_model(folder / "typed", says=[TYPED])
    make_tiny_model(folder / "spaced", says=[" upon", " a"])
    make_tiny_model(folder / "endless", says=["tick", " tock"], loop=True, context_window=100_000)
    (folder / "endless" / "profile.toml").write_text("[sampling]\nmax_tokens = 90000\n")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with three Python files."""
    root = tmp_path / "project"
    root.mkdir()
    for name in ("a.py", "b.py", "c.py"):
        (root / name).write_text("x = 1\n")
    (root / "README.md").write_text("# The Blue Whale\n\nIt is large.\n")
    return root


def with_host(models: Path, folder: Path, model: str, test: Test) -> None:
    async def main() -> None:
        async with served(models, folder, model) as host, asyncio.timeout(DEADLINE):
            await test(host)

    asyncio.run(main())


@asynccontextmanager
async def embedded(
    models: Path, folder: Path, root: Path
) -> AsyncGenerator[tuple[ServedHost, Case]]:
    """Run the embedded model behind its door, and a worker that runs programs in `root`."""
    async with served(models, folder, "embedded") as host, running(folder, root) as case:
        async with asyncio.timeout(LOOPS):
            yield host, case


# tool loops of the official client


def in_history(message: ChatCompletionMessage) -> Any:
    """Return an answer as clients send it back: dumped, with all its nulls."""
    return message.model_dump()


def test_a_tool_loop_of_the_official_client(models: Path, tmp_path: Path, project: Path):
    async def main() -> None:
        async with embedded(models, tmp_path, project) as (host, case), host.client() as client:
            talk: list[Any] = [{"role": "user", "content": "How many Python files are there?"}]
            answer = await client.chat.completions.create(
                model="default", messages=talk, tools=[CODE]
            )
            [choice] = answer.choices
            assert choice.finish_reason == "tool_calls"
            [call] = choice.message.tool_calls or []
            assert call.type == "function"
            assert call.function.name == "execute_code"
            printed = await case.code(json.loads(call.function.arguments)["code"])
            result = {"role": "tool", "tool_call_id": call.id, "content": printed}
            talk += [in_history(choice.message), result]
            answer = await client.chat.completions.create(
                model="default", messages=talk, tools=[CODE]
            )
            [choice] = answer.choices
            assert (choice.message.content, choice.finish_reason) == (
                "There are 3 Python files.",
                "stop",
            )

    asyncio.run(main())


def test_a_streamed_tool_loop_of_the_official_client(models: Path, tmp_path: Path, project: Path):
    async def main() -> None:
        async with embedded(models, tmp_path, project) as (host, case), host.client() as client:
            talk: list[Any] = [{"role": "user", "content": "What is the title of README.md?"}]
            said = ""
            for step in range(2):
                async with client.chat.completions.stream(
                    model="default",
                    messages=talk,
                    tools=[CODE],
                    stream_options={"include_usage": True},
                ) as stream:
                    answer = await stream.get_final_completion()
                assert answer.usage is not None
                [choice] = answer.choices
                said = choice.message.content or ""
                talk.append(in_history(choice.message))
                for call in choice.message.tool_calls or []:
                    assert step == 0, "one program answers that"
                    printed = await case.code(json.loads(call.function.arguments)["code"])
                    talk.append({"role": "tool", "tool_call_id": call.id, "content": printed})
            assert said == 'The title of README.md is "The Blue Whale".'

    asyncio.run(main())


def test_the_client_that_waits_has_a_loop_too(models: Path, tmp_path: Path):
    def ask(port: int) -> list[Any]:
        with openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=DEADLINE
        ) as client:
            create = client.chat.completions.create
            whole = create(model="default", messages=HELLO, tools=[LOOK])
            [choice] = whole.choices
            calls = choice.message.tool_calls or []
            results = [{"role": "tool", "tool_call_id": call.id, "content": "x"} for call in calls]
            more: list[Any] = [*HELLO, in_history(choice.message), *results]
            return list(create(model="default", messages=more, tools=[LOOK], stream=True))

    async def test(host: ServedHost) -> None:
        chunks = await asyncio.to_thread(ask, host.port)
        deltas = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
        assert [delta.index for delta in deltas] == [0, 1]
        assert len({delta.id for delta in deltas}) == 2
        assert {(delta.type, delta.function.name) for delta in deltas} == {("function", "look")}
        arguments = [json.loads(delta.function.arguments) for delta in deltas]
        assert arguments == [{"path": "a.py"}, {"path": "b.py"}]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert all(chunk.usage is None for chunk in chunks)

    with_host(models, tmp_path, "twice", test)


def test_one_call_when_only_one_may_come(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            answer = await client.chat.completions.create(
                model="default", messages=HELLO, tools=[LOOK], parallel_tool_calls=False
            )
            [choice] = answer.choices
            assert choice.finish_reason == "tool_calls"
            [call] = choice.message.tool_calls or []
            assert call.type == "function"
            assert json.loads(call.function.arguments) == {"path": "a.py"}

    with_host(models, tmp_path, "twice", test)


def test_a_call_that_has_to_be(models: Path, tmp_path: Path):
    """This model says a parameter after any line feed: what is before it was given."""

    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            create = client.chat.completions.create
            named: Any = {"type": "function", "function": {"name": "look"}}
            answer = await create(model="default", messages=HELLO, tools=[LOOK], tool_choice=named)
            [choice] = answer.choices
            assert choice.finish_reason == "tool_calls"
            [call] = choice.message.tool_calls or []
            assert call.type == "function"
            assert (call.function.name, json.loads(call.function.arguments)) == (
                "look",
                {"path": "x"},
            )
            free = await create(model="default", messages=HELLO, tools=[LOOK])
            assert not free.choices[0].message.tool_calls
            other: Any = {"type": "function", "function": {"name": "other"}}
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model="default", messages=HELLO, tools=[LOOK], tool_choice=other)
            assert caught.value.param == "tool_choice"

    with_host(models, tmp_path, "parameter", test)


def test_the_embedded_model_calls_when_it_has_to(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            for choice in ("required", {"type": "function", "function": {"name": "execute_code"}}):
                wish: Any = choice
                answer = await client.chat.completions.create(
                    model="default",
                    messages=[{"role": "user", "content": "How many Python files are there?"}],
                    tools=[CODE],
                    tool_choice=wish,
                )
                [call] = answer.choices[0].message.tool_calls or []
                assert call.type == "function"
                assert "list_files" in json.loads(call.function.arguments)["code"]

    with_host(models, tmp_path, "embedded", test)


# pydantic-ai


def agent_of(host: ServedHost, case: Case) -> Agent[None, str]:
    """Return an agent whose tool runs what the model writes."""
    provider = OpenAIProvider(base_url=f"http://127.0.0.1:{host.port}/v1", api_key=KEY)
    agent = Agent(OpenAIChatModel("default", provider=provider))

    @agent.tool_plain
    async def execute_code(code: str) -> str:
        """Run a program and return what it printed."""
        return await case.code(code)

    return agent


def test_a_tool_loop_of_pydantic_ai(models: Path, tmp_path: Path, project: Path):
    async def main() -> None:
        async with embedded(models, tmp_path, project) as (host, case):
            agent = agent_of(host, case)
            async with agent:
                run = await agent.run("How many Python files are there?")
                assert run.output == "There are 3 Python files."
                parts = [part for message in run.all_messages() for part in message.parts]
                [call] = [part for part in parts if isinstance(part, ToolCallPart)]
                [result] = [part for part in parts if isinstance(part, ToolReturnPart)]
                assert call.tool_call_id == result.tool_call_id
                assert str(result.content).strip() == "3"
                assert run.usage.requests == 2
                assert run.usage.output_tokens > 0
                again = await agent.run("Which ones?", message_history=run.all_messages())
                assert "a.py" in again.output

    asyncio.run(main())


def test_a_streamed_tool_loop_of_pydantic_ai(models: Path, tmp_path: Path, project: Path):
    async def main() -> None:
        async with embedded(models, tmp_path, project) as (host, case):
            agent = agent_of(host, case)
            settings = ModelSettings(parallel_tool_calls=False, seed=3, temperature=0.0)
            async with (
                agent,
                agent.run_stream("What is the title of README.md?", model_settings=settings) as run,
            ):
                pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
                assert "".join(pieces) == 'The title of README.md is "The Blue Whale".'
                assert len(pieces) > 1, "it comes while it is made"
                assert run.usage.requests == 2

    asyncio.run(main())


class Place(BaseModel):
    """Where something is."""

    path: str
    line: int


def test_pydantic_ai_gets_a_typed_answer(models: Path, tmp_path: Path):
    """It asks for one by a tool that has to be called."""

    async def test(host: ServedHost) -> None:
        provider = OpenAIProvider(base_url=f"http://127.0.0.1:{host.port}/v1", api_key=KEY)
        async with Agent(OpenAIChatModel("default", provider=provider), output_type=Place) as agent:
            run = await agent.run("Where is it?")
            assert run.output == Place(path="a.py", line=7)

    with_host(models, tmp_path, "typed", test)


# completions


def test_completions(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            create = client.completions.create
            whole = await create(model="default", prompt="a\n")
            [choice] = whole.choices
            assert (choice.text, choice.finish_reason) == ("tick tock" * 8, "length")
            assert whole.usage is not None
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 16)
            ids = await create(model="default", prompt=[64, 198], max_tokens=3)
            assert ids.choices[0].finish_reason == "length"
            stopped = await create(model="default", prompt="a\n", stop=" tock", max_tokens=9)
            assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("tick", "stop")
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model="default", prompt=[10**9])
            assert caught.value.param == "prompt"
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model="default", prompt="x" * 2_000_000)
            assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model="default", prompt="")
            assert caught.value.param == "prompt"

    with_host(models, tmp_path, "endless", test)


def test_completions_of_several_prompts_stream_side_by_side(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            stream = await client.completions.create(
                model="default",
                prompt=["a\n", "b\n"],
                max_tokens=4,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            said = {0: "", 1: ""}
            for choice in (choice for chunk in chunks for choice in chunk.choices):
                said[choice.index] += choice.text
            assert said == {0: "tick tocktick tock", 1: "tick tocktick tock"}
            *_, last = chunks
            assert last.choices == []
            assert last.usage is not None
            assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 8)

    with_host(models, tmp_path, "endless", test)


def test_a_raw_prompt_is_what_the_template_makes(models: Path, tmp_path: Path):
    """Control tokens of a raw prompt are tokens; its answer is text, calls and all."""
    raw = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            chat = await client.chat.completions.create(model="default", messages=HELLO)
            text = await client.completions.create(model="default", prompt=raw, max_tokens=99)
            assert chat.usage is not None
            assert text.usage is not None
            assert text.usage.prompt_tokens == chat.usage.prompt_tokens
            assert text.choices[0].text == CALL.format("a.py") + CALL.format("b.py")
            assert text.choices[0].finish_reason == "stop"

    with_host(models, tmp_path, "twice", test)


def test_a_completion_begins_where_its_prompt_ends(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            create = client.completions.create
            whole = await create(model="default", prompt="Once\n", max_tokens=2)
            assert whole.choices[0].text == " upon a"
            stream = await create(model="default", prompt="Once\n", max_tokens=2, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == " upon a"

    with_host(models, tmp_path, "spaced", test)


# seeds


def test_a_seed_gives_the_same_answer_alone_and_beside_others(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:

            async def ask(seed: int, **more: Any) -> tuple[list[str], str | None]:
                answer = await client.completions.create(
                    model="default",
                    prompt="hello",
                    max_tokens=24,
                    temperature=1.0,
                    seed=seed,
                    **more,
                )
                return [choice.text for choice in answer.choices], answer.system_fingerprint

            alone, fingerprint = await ask(7)
            assert fingerprint
            among = await asyncio.gather(*(ask(seed) for seed in (7, 8, 7, 9, 10, 7)))
            assert [texts == alone for texts, _ in among] == [True, False, True, False, False, True]
            assert {mark for _, mark in among} == {fingerprint}
            several, _ = await ask(7, n=3)
            assert several == [*alone, *among[1][0], *among[3][0]]

    with_host(models, tmp_path, "random", test)


# failures, as the official client has them


def test_a_stream_that_breaks_is_an_api_error(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            stream = await client.chat.completions.create(
                model="default", messages=HELLO, stream=True
            )
            await anext(stream)
            stopping = asyncio.create_task(host.stop())
            with pytest.raises(openai.APIError) as caught:
                _ = [chunk async for chunk in stream]
            assert caught.value.code in ("cancelled", "model_unavailable")
            assert await stopping == 0

    with_host(models, tmp_path, "endless", test)
