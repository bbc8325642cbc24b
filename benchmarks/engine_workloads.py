"""What `benchmarks.engine` asks of a server. Each workload returns its raw samples.

Texts come from a seed, the same for both servers in a round and new in every round: unless a
workload says otherwise, no cache has any of a prompt but its first tag.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from benchmarks import engine_figures as figures
from benchmarks.engine_client import Answer, Server, Stream, answered, ask
from benchmarks.engine_text import Message, Tokens, Words

ENDLESS: Final = 6_000
"""Tokens of an answer that is abandoned before it ends."""
_SETTLE: Final = 1.0
"""Seconds left to a server to notice that answers were abandoned."""

type Sample = dict[str, Any]


async def throughput(
    server: Server, seed: str, *, clients: int, requests: int, prompt: int, answer: int
) -> Sample:
    """Clients that each ask `requests` questions, one after the other."""

    async def one(number: int) -> list[Answer]:
        words = Words(f"{seed}-{number}")
        return [await answered(server, words.asked(prompt), answer) for _ in range(requests)]

    started, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(clients)]
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    answers = [got for task in tasks for got in task.result()]
    gaps = [gap for got in answers for gap in figures.gaps(got.marks)]
    return {
        "tok_s": sum(got.tokens for got in answers) / wall,
        "wall_s": wall,
        "tokens": sum(got.tokens for got in answers),
        "prompt_tokens": sum(got.prompt for got in answers),
        "ttft_s": [got.ttft for got in answers if got.marks],
        "gap_s_p50": figures.middle(gaps),
        "client_cpu_share": cpu / wall,
        "at_once": figures.most_at_once([(got.first, got.last) for got in answers if got.marks]),
    }


async def decoding(server: Server, seed: str, *, clients: int, prompt: int, answer: int) -> Sample:
    """Tokens a second while all of `clients` short prompts are being answered."""
    words = Words(seed)
    asked = [await ask(server, words.asked(prompt), answer) for _ in range(clients)]
    answers = [await one.answer() for one in asked]
    start, end = max(one.first for one in answers), min(one.last for one in answers)
    if end <= start:
        raise RuntimeError(f"{clients} answers of {answer} tokens never ran all at once")
    within = sum(one.words_within(start, end) for one in answers)
    wall = max(one.last for one in answers) - min(one.sent for one in answers)
    whole = sum(one.tokens for one in answers) / wall
    return {"tok_s": within / (end - start), "with_prefill_tok_s": whole, "window_s": end - start}


async def join(server: Server, seed: str, *, streams: int, samples: int, prompt: int) -> Sample:
    """Times to the first word: alone, and of one that joins running streams."""
    words = Words(seed)
    alone = [(await answered(server, words.asked(prompt), 4)).ttft for _ in range(samples)]
    running = await _endless(server, words, streams)
    joining = []
    for _ in range(samples):
        await asyncio.sleep(words.seconds(0.6))
        joining.append((await answered(server, words.asked(prompt), 4)).ttft)
    await _abandon(running)
    return {"alone_s": alone, "joining_s": joining}


async def gap(server: Server, seed: str, *, streams: int, prompt: int) -> Sample:
    """The longest time between two words of any of the running streams while a long prompt is
    read, and in the two seconds before it came."""
    words = Words(seed)
    running = await _endless(server, words, streams)
    await asyncio.sleep(2.0)
    long = await answered(server, words.asked(prompt), 4)
    await asyncio.sleep(0.2)
    marks = [one.so_far().marks for one in running]
    await _abandon(running)
    before, after = long.sent - 2.0, long.sent
    return {
        "gap_s": max(figures.longest_gap(one, long.sent, long.first) for one in marks),
        "before_s": max(figures.longest_gap(one, before, after) for one in marks),
        "long_ttft_s": long.ttft,
    }


async def _endless(server: Server, words: Words, count: int) -> list[Stream]:
    streams = [await ask(server, words.asked(32), ENDLESS) for _ in range(count)]
    for stream in streams:
        await stream.until_started(8)
    return streams


async def _abandon(streams: Sequence[Stream]) -> None:
    ended = sum(stream.done for stream in streams)
    for stream in streams:
        stream.abandon()
    if ended:
        raise RuntimeError(f"{ended} of {len(streams)} streams ended while they were needed")
    await asyncio.sleep(_SETTLE)


async def fairness(
    server: Server, seed: str, *, others: int, greedy: int, seconds: float, answer: int
) -> Sample:
    """Words that each client got within `seconds` while all had work: one of them asks `greedy`
    questions at a time, the others one."""
    asking: dict[str, list[Stream]] = {}

    async def ask_on(user: str, number: int) -> None:
        words = Words(f"{seed}-{user}-{number}")
        while True:
            stream = await ask(server, words.asked(96), answer, user)
            asking.setdefault(user, []).append(stream)
            await stream.answer()

    users = ["greedy"] * greedy + [f"client{number}" for number in range(others)]
    tasks = [asyncio.create_task(ask_on(user, number)) for number, user in enumerate(users)]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        end = time.perf_counter()
        answers = {user: [one.so_far() for one in got] for user, got in asking.items()}
        for one in (one for got in asking.values() for one in got if not one.done):
            one.abandon()
    await asyncio.sleep(_SETTLE)
    start = max(min(one.first for one in got if one.marks) for got in answers.values())
    words = {user: sum(a.words_within(start, end) for a in got) for user, got in answers.items()}
    return {"words": words, "window_s": end - start, "fairness": figures.fairness(words)}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each part of a conversation."""

    conversations: int = 16
    turns: int = 4
    system: int = 240
    user: int = 48
    answer: int = 24


@dataclass
class Conversations:
    """Conversations with one system prompt that go on turn by turn, one request at a time: turn 1
    of all, turn 2 of all, ... What a server could have cached is computed from the tokens."""

    lengths: Lengths
    seed: str
    _tokens: Tokens = field(default_factory=Tokens)
    _seen: figures.Ceiling = field(default_factory=figures.Ceiling)
    _messages: list[list[Message]] = field(default_factory=list[list[Message]])

    def __post_init__(self) -> None:
        self._words = Words(self.seed)
        system = {"role": "system", "content": self._words.text(self.lengths.system)}
        self._messages = [[system] for _ in range(self.lengths.conversations)]

    async def turns(self, server: Server, count: int) -> Sample:
        """Go on by `count` turns. Raises `RuntimeError` when the server's prompt is not what the
        template makes of the conversation."""
        requests = [
            await self._turn(server, messages) for _ in range(count) for messages in self._messages
        ]
        cached, ceiling, prompt = (sum(column) for column in zip(*requests, strict=True))
        return {
            "cached": cached,
            "ceiling": ceiling,
            "prompt": prompt,
            "share_of_ceiling": cached / ceiling,
            "share_of_prompt": cached / prompt,
            "requests": requests,
            "lengths": asdict(self.lengths),
        }

    async def _turn(self, server: Server, messages: list[Message]) -> tuple[int, int, int]:
        """Return the cached tokens, what they could be at most, and all of the prompt."""
        messages.append({"role": "user", "content": self._words.text(self.lengths.user)})
        prompt = self._tokens.prompt(messages)
        answer = await answered(server, messages, self.lengths.answer)
        if answer.prompt != len(prompt):
            raise RuntimeError(f"a prompt of {len(prompt)} tokens came to {answer.prompt}")
        if answer.cached >= len(prompt):
            raise RuntimeError(f"{answer.cached} of {len(prompt)} tokens were said to be cached")
        ceiling = self._seen.of(prompt)
        self._seen.add([*prompt, *self._tokens.answer(answer.text)])
        messages.append({"role": "assistant", "content": answer.text})
        return answer.cached, ceiling, len(prompt)
