"""What programs print: kept within bounds, told as plain text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.verbatim import fenced, unfenced
from punie_workers.interp.plain import plain, visible
from punie_workers.printed import HEAD, RECENT, TAIL, Printed

PLAIN = [
    ("a\tb\nc", "a\tb\nc"),
    ("a\r\nb\rc", "a\nb\nc"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[8mhidden\x1b[0m", "hidden"),
    ("\x1b[2J\x1b[1;1Hscreen", "screen"),
    ("\x1b]0;title\x07text", "text"),
    ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x1bP1;2|data\x1b\\rest", "rest"),
    ("\x1b]never ended", "never ended"),
    ("\x1b[31", "31"),
    ("end\x1b", "end␛"),
    ("\x1b(Btext", "text"),
    ("bell\x07 back\x08 nul\x00 del\x7f", "bell␇ back␈ nul␀ del␡"),
    ("\x9b31mred", "\\u009b31mred"),
    ("\u202etxt.exe", "\\u202etxt.exe"),
    ("a\u2066b\u200b", "a\\u2066b\\u200b"),
    ("\U000e0041tag", "\\ue0041tag"),
    ("line\u2028end", "line\\u2028end"),
    ("\ud800", "\\ud800"),
    ("é ☃ 👩\u200d💻 日本", "é ☃ 👩\u200d💻 日本"),
]


@pytest.mark.parametrize(("text", "expected"), PLAIN)
def test_plain(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    for function in (plain, visible):
        for character in function(text):
            hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
            assert not hidden or character in "\n\t\u200c\u200d", repr(character)
        assert function(function(text)) == function(text)


def test_what_is_visible_hides_no_sequence() -> None:
    assert visible("\x1b[8mrm -rf x") == "␛[8mrm -rf x"


@given(st.lists(st.binary(max_size=3 * HEAD), max_size=20))
def test_pieces_make_no_difference(pieces: list[bytes]) -> None:
    whole, parts = Printed(), Printed()
    whole.add(b"".join(pieces))
    for piece in pieces:
        parts.add(piece)
    assert (whole.text(), whole.recent()) == (parts.text(), parts.recent())
    assert whole.truncated == (sum(map(len, pieces)) > HEAD + TAIL)


@given(st.integers(0, 20_000))
def test_the_beginning_and_the_end_are_kept(count: int) -> None:
    printed = Printed()
    lines = [f"line {number}" for number in range(count)]
    printed.add("".join(f"{line}\n" for line in lines).encode())
    told = printed.text().splitlines()
    if not printed.truncated:
        assert told == lines
        return
    (note,) = (at for at, line in enumerate(told) if "left out" in line)
    assert told[:note] == lines[:note]
    assert told[note + 1 :] == lines[note + 1 - len(told) :]
    assert len(printed.text()) <= HEAD + TAIL + 100
    assert printed.recent().splitlines()[-1] == lines[-1]
    assert len(printed.recent()) <= RECENT


@given(st.text(alphabet="a`\n~"))
def test_a_fence_is_closed_by_nothing_in_it(text: str) -> None:
    block = fenced(text)
    assert unfenced(block) == text
    fence, *inside, last = block.split("\n")
    assert fence == last
    assert all(fence not in line for line in inside)


def test_a_text_without_a_fence_stays() -> None:
    assert unfenced("```\nopen") == "```\nopen"
    assert unfenced("said ```\nx\n```") == "said ```\nx\n```"


def test_a_whole_last_line_is_shown_as_whole() -> None:
    printed = Printed()
    printed.add(b"hi\ngo\n")
    assert printed.recent() == "hi\ngo\n"
    assert printed.text() == "hi\ngo"
    printed.add(b"on")
    assert printed.recent() == "hi\ngo\non"
