"""What a model loop does not put up with."""

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_workers.manners import (
    MAX_PERIOD,
    MIN_PLAIN,
    MIN_REPEATED,
    MIN_REPEATS,
    CallHistory,
    Repetition,
    TurnLimits,
    answer_problem,
)


def is_stuck(text: str, chunk: int = 17) -> bool:
    rule = Repetition()
    return any(rule.add(text[at : at + chunk]) for at in range(0, len(text), chunk))


PIECE = st.text(min_size=20, max_size=MAX_PERIOD).filter(lambda piece: any(map(str.isalpha, piece)))


@given(PIECE, st.text(max_size=500), st.integers(1, 300))
def test_a_piece_without_end_is_noticed_soon(piece: str, before: str, chunk: int) -> None:
    enough = max(MIN_REPEATED, MIN_PLAIN if len(set(piece)) < 20 else 0, MIN_REPEATS * len(piece))
    text = before + piece * ((enough + 200) // len(piece) + 2)
    assert is_stuck(text, chunk)


@given(st.lists(st.text(max_size=80), max_size=60, unique=True), st.integers(1, 300))
def test_lines_that_differ_are_no_repetition(lines: list[str], chunk: int) -> None:
    assert not is_stuck("\n".join(f"{n}: {line}" for n, line in enumerate(lines)), chunk)


def test_a_few_repetitions_are_allowed() -> None:
    line = "I will now look at the file again.\n"
    assert not is_stuck(line * (MIN_REPEATED // len(line) - 1))
    assert is_stuck(line * (MIN_REPEATED // len(line) + 4))
    long = "".join(f"word{n} " for n in range(40))
    assert not is_stuck(long * (MIN_REPEATS - 1))
    assert is_stuck(long * (MIN_REPEATS + 1))


def test_one_word_and_a_blank_end_later() -> None:
    assert not is_stuck("    None,\n" * 200)
    assert is_stuck("no " * (MIN_PLAIN // 3 + 100))
    assert is_stuck("\n" * (MIN_PLAIN + 100))


TABLES = {
    "zeros": "\n".join(" ".join("0.0000" for _ in range(40)) for _ in range(12)),
    "ones": repr([[1] * 24 for _ in range(24)]),
    "rule": "=" * 1500,
    "markdown": "\n".join(f"| {n} | ok | 0.{n} s |" for n in range(300)),
    "separators": "|---" * 200 + "|",
    "asserts": "\n".join(f"    assert f({n}) == {n}" for n in range(300)),
    "list": "\n".join(f"- item {n}: unchanged" for n in range(300)),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_no_repetition(table: str) -> None:
    assert not is_stuck(TABLES[table])


def test_the_standard_library_is_no_repetition() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    folders = ("asyncio", "collections", "email", "encodings", "json", "unittest", "xml", "idlelib")
    files = [
        *root.glob("*.py"),
        *(file for name in folders for file in root.glob(f"{name}/**/*.py")),
    ]
    assert len(files) > 300
    texts = {file: file.read_text("utf-8", "replace") for file in files if file.exists()}
    assert [str(file) for file, text in texts.items() if is_stuck(text, 500)] == []


def calls(history: CallHistory, names: str, result: str = "r") -> list[str | None]:
    return [history.add(name, "{}", result) for name in names]


def test_the_model_is_told_once_and_stopped_then() -> None:
    history = CallHistory()
    *first, note = calls(history, "aaa")
    assert first == [None, None]
    assert note is not None
    assert "called a 3 times with the same arguments and the same result" in note
    assert not history.stuck
    (reason,) = calls(history, "a")
    assert history.stuck
    assert reason == (
        "the model called a 3 times with the same arguments and the same result and went on "
        "after it was told so"
    )


def test_calls_in_turn_count_too() -> None:
    history = CallHistory()
    *first, note = calls(history, "abab")
    assert first == [None] * 3
    assert note is not None
    assert "called a and b in turn" in note
    calls(history, "a")
    assert history.stuck


def test_another_repetition_after_a_word_ends_it_and_other_calls_do_not() -> None:
    history = CallHistory()
    assert calls(history, "aaabcd")[3:] == [None] * 3
    assert not history.stuck
    calls(history, "eee")
    assert history.stuck


def test_other_results_and_effects_are_progress() -> None:
    history = CallHistory()
    assert [history.add("a", "{}", str(n)) for n in range(9)] == [None] * 9
    assert [history.add("a", f"{n}", "r") for n in range(9)] == [None] * 9
    for _ in range(9):
        assert calls(history, "ab") == [None] * 2
        history.reset()
    calls(history, "aaa")
    history.reset()
    assert calls(history, "aa") == [None] * 2
    assert not history.stuck


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_a_note_comes_before_the_stop(names: list[str]) -> None:
    history, notes = CallHistory(), 0
    for name in names:
        note = history.add(name, "{}", "r")
        assert history.stuck is (note is not None and notes > 0)
        if history.stuck:
            break
        notes += note is not None


def fenced(code: str, language: str = "python") -> str:
    return f"Like this:\n\n```{language}\n{code}\n```\nand so on."


FINE = [
    "x = 1",
    "def f(...):\n    ...",
    "def f(a: int) -> str:",
    "class A(B):\n    def f(self):",
    "    return self.x\n",
    "else:\n    y()",
    "except ValueError:\n    pass",
    "case 1:\n    pass",
    "try:\n    f()",
    "@cached",
    "f(a, …)",
    "config = {'a': 1, ...}",
    ">>> f(1)\n2\n>>> 1 +",
    "!pip install punie\nimport x",
    "await f()",
    "x = '\\d'",
    "",
]


@pytest.mark.parametrize("code", FINE)
def test_pieces_of_python_are_fine(code: str) -> None:
    assert answer_problem(fenced(code), check_fences=True) is None


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("x = 1\nprint 'x'", "line 2 `print 'x'`: Missing parentheses"),
        ("def f(:\n    pass", "line 1 `def f(:`: invalid syntax"),
        ("def f():\nreturn 1", "line 2 `return 1`: expected an indented block"),
        ("x = [1,\n2", "'[' was never closed"),
        ("\x00", "null bytes"),
    ],
)
def test_broken_python_is_sent_back_with_the_reason(code: str, why: str) -> None:
    problem = answer_problem(fenced(code), check_fences=True)
    assert problem is not None
    assert why in problem
    assert "Send the whole answer again" in problem
    assert answer_problem(fenced(code), check_fences=False) is None
    assert answer_problem(fenced(code, "py"), check_fences=True) is not None
    for other in ("", "text", "pycon", "javascript"):
        assert answer_problem(fenced(code, other), check_fences=True) is None


def test_fences_are_found_as_markdown_has_them() -> None:
    broken = "print 'x'"
    listed = f"1. First\n   ```python\n   {broken}\n   ```\n"
    second = fenced("x = 1") + fenced(broken)
    longer = f"````python\ns = '''\n```\n'''\n````\n{fenced(broken)}"
    assert all(answer_problem(text, check_fences=True) for text in (listed, second, longer))
    open_end = f"```python\n{broken}"
    inner = f"````markdown\n```python\n{broken}\n```\n````"
    assert answer_problem(open_end, check_fences=True) is None
    assert answer_problem(inner, check_fences=True) is None


@given(st.text(alphabet="`python \n():=x'\"\\.…>", max_size=200))
def test_any_answer_can_be_checked(text: str) -> None:
    problem = answer_problem(text, check_fences=True)
    assert problem is None or "does not parse" in problem or not text.strip()
    assert "```" in text or not text.strip() or problem is None


def test_deep_nesting_and_great_length_are_not_held_against_an_answer() -> None:
    for code in ("-" * 20_000 + "1", "x = (" * 20_000):
        answer_problem(fenced(code), check_fences=True)
    assert answer_problem(fenced("(" * 50_000), check_fences=True) is None


@pytest.mark.parametrize("text", ["", " \n\t", "\N{NO-BREAK SPACE}"])
def test_an_empty_answer_is_sent_back(text: str) -> None:
    assert answer_problem(text, check_fences=False) is not None


def test_a_turn_has_limits_and_they_are_said() -> None:
    limits = TurnLimits(requests=2, tool_calls=3, output_tokens=1000, wrong_per_tool=1, wrong=2)
    assert [limits.request() for _ in range(2)] == [None] * 2
    assert [limits.tool_call() for _ in range(3)] == [None] * 3
    assert limits.tokens(1000) is None
    stops = (limits.request(), limits.tool_call(), limits.tokens(1001))
    assert [stop.stop_reason for stop in stops if stop] == [
        "max_turn_requests",
        "max_turn_requests",
        "max_tokens",
    ]
    said = " ".join(stop.detail for stop in stops if stop)
    assert "2 requests" in said
    assert "3 tool calls" in said
    assert "1,001 tokens" in said


def test_wrong_calls_are_counted_by_tool_and_in_all() -> None:
    limits = TurnLimits(wrong_per_tool=3, wrong=6)
    assert [limits.wrong_call("search", "no `x`") for _ in range(3)] == [None] * 3
    stop = limits.wrong_call("search", "no `x`")
    assert stop is not None
    assert "called search wrongly 4 times; the last: no `x`" in stop.detail
    limits = TurnLimits(wrong_per_tool=3, wrong=6)
    tools = ["a", "b", "c"] * 2
    assert [limits.wrong_call(tool, "?") for tool in tools] == [None] * 6
    stop = limits.wrong_call("d", "?")
    assert stop is not None
    assert "7 wrong tool calls" in stop.detail
