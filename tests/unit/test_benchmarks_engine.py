"""The pure parts of `benchmarks.engine`: which way round a ratio is, what a perfect cache has, how
a stream is read."""

import random

import pytest

from benchmarks import engine_figures as figures
from benchmarks import engine_summary as summary
from benchmarks.engine_client import read
from benchmarks.engine_text import WORDS, Tokens, Words

USAGE = b'{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}'
EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b": prefill 512/2000\n\n",
    b'data: {"choices":[{"delta":{"content":"abc"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":" abd abe"},"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":' + USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
)
PLAIN = b"HTTP/1.0 200 OK\r\nContent-type: text/event-stream\r\n\r\n" + b"".join(EVENTS)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS)
    + b"0\r\n\r\n"
)


def pieces(response: bytes, seed: int) -> list[tuple[float, bytes]]:
    """Cut a response anywhere; piece n arrives at n seconds."""
    cuts = sorted(random.Random(seed).sample(range(1, len(response)), 20))
    bounds = zip([0, *cuts], [*cuts, len(response)], strict=True)
    return [(float(n), response[a:b]) for n, (a, b) in enumerate(bounds, 1)]


@pytest.mark.parametrize("response", [PLAIN, CHUNKED])
@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_read_however_it_is_cut(response: bytes, seed: int) -> None:
    arrived = pieces(response, seed)
    answer = read(0.5, arrived)
    assert (answer.text, answer.prompt, answer.tokens, answer.cached) == ("abc abd abe", 7, 3, 5)
    assert sum(words for _, words in answer.marks) == 3
    whole = b"".join(data for _, data in arrived if _ <= answer.first)
    assert b'"abc"}}]}' in whole, "the first word was marked before it had come"
    assert answer.ttft == answer.first - 0.5
    assert len({when for when, _ in answer.marks}) == len(answer.marks)


def test_a_broken_answer_is_none() -> None:
    with pytest.raises(RuntimeError, match="broke off"):
        read(0.0, [(1.0, PLAIN[:200])])
    assert read(0.0, [(1.0, PLAIN[:240])], complete=False).text == "abc"
    with pytest.raises(RuntimeError, match=r"refused.*429"):
        read(0.0, [(1.0, b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}")])
    error = b'HTTP/1.1 200 OK\r\n\r\ndata: {"error":{"message":"too slow"}}\n\n'
    with pytest.raises(RuntimeError, match="too slow"):
        read(0.0, [(1.0, error)])


def test_an_answer_that_comes_back_is_the_same_tokens() -> None:
    tokens, text = Tokens(), Words("x").text(9)
    conversation = [{"role": "system", "content": "abc"}, {"role": "user", "content": "abd"}]
    before = tokens.prompt(conversation)
    for said in (text, f" {text}"):  # a server may strip the first space
        answer = tokens.answer(said)
        assert len(answer) == 9
        later = [*conversation, {"role": "assistant", "content": said}]
        after = tokens.prompt([*later, {"role": "user", "content": "abe"}])
        assert after[: len(before) + 9] == [*before, *answer]
    assert len({*tokens.answer(" ".join(WORDS))}) == len(WORDS)


def test_a_perfect_cache_has_the_longest_prefix_but_the_last_token() -> None:
    ceiling = figures.Ceiling()
    assert ceiling.of([1, 2, 3]) == 0
    ceiling.add([1, 2, 3, 4])
    ceiling.add([1, 2, 9, 9, 9])
    assert ceiling.of([1, 2, 3, 5]) == 3
    assert ceiling.of([1, 2, 9, 9, 9, 9]) == 5
    assert ceiling.of([1, 2, 3, 4]) == 3
    assert ceiling.of([7]) == 0


def test_the_longest_gap_is_one_while_it_was_watched() -> None:
    marks = [(0.0, 1), (5.0, 1), (5.5, 1), (7.5, 1), (8.0, 1)]
    assert figures.longest_gap(marks, 5.2, 6.0) == 2.0
    assert figures.longest_gap(marks, 1.0, 6.0) == 5.0
    with pytest.raises(RuntimeError, match="did not run"):
        figures.longest_gap(marks, 5.0, 9.0)


def test_answers_that_only_follow_each_other_are_not_at_once() -> None:
    assert figures.most_at_once([(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]) == 1
    assert figures.most_at_once([(0.0, 1.5), (1.0, 4.0), (1.2, 2.0), (3.0, 3.5)]) == 3
    assert figures.most_at_once([]) == 0


def test_fairness_is_of_the_worst() -> None:
    assert figures.fairness({"greedy": 80, "a": 10, "b": 30}) == 0.25
    assert figures.fairness({"greedy": 20, "a": 20}) == 1.0


def stream(tok_s: float) -> dict[str, float]:
    return {"tok_s": tok_s, "tokens": 100, "server_cpu_s": 100 / tok_s, "client_cpu_share": 0.01}


def test_ratios_are_ours_over_theirs() -> None:
    raw = {
        "throughput/8": {"ours": [stream(30.0)], "theirs": [stream(20.0)]},
        "join": {
            "ours": [{"alone_s": [0.10], "joining_s": [0.13]}],
            "theirs": [{"alone_s": [0.10], "joining_s": [0.40]}],
        },
        "gap": {
            "ours": [{"gap_s": 0.2, "before_s": 0.1, "long_ttft_s": 2.0}],
            "theirs": [{"gap_s": 2.0, "before_s": 0.1, "long_ttft_s": 2.0}],
        },
        "scaling/1": {"ours": [{"tok_s": 10.0}]},
        "scaling/16": {"ours": [{"tok_s": 70.0}]},
    }
    found = summary.of(raw)
    assert found["tok_s_ratio_8"] == found["tok_cpu_s_ratio"]["throughput/8"] == 1.5
    assert found["join_ttft_ratio"] == pytest.approx(0.1)
    assert found["gap_ratio"] == pytest.approx(0.1)
    assert found["batch_scaling_16"] == 7.0
    assert found["tok_s_ratio_1"] is None
    assert found["batch_scaling_16_theirs"] is None


def test_nothing_is_divided_by_next_to_nothing() -> None:
    assert figures.time_ratio(0.1, 0.001) is None
    assert figures.time_ratio(-0.01, 0.1) == -0.1
