"""A permission question in the terminal: what is shown, what an answer means."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from typing import Any

import pytest
from msgspec import Raw

from punie_protocol.verbatim import fenced
from punie_supervisor.cli.permission import decode, outcome, render

OPTIONS = [
    {"optionId": "allow-once", "name": "Allow once", "kind": "allow_once"},
    {"optionId": "allow-for-session", "name": "Allow for this session", "kind": "allow_always"},
    {"optionId": "reject-once", "name": "Reject", "kind": "reject_once"},
    {"optionId": "reject-always", "name": "Reject always", "kind": "reject_always"},
]


def question(options: list[dict[str, str]] = OPTIONS, **call: object) -> Raw:
    params = {
        "sessionId": "s1",
        "toolCall": {"toolCallId": "q:1", "title": "edit_file: a.py"} | call,
        "options": options,
    }
    return Raw(json.dumps(params).encode())


DIFF = {"type": "diff", "path": "/p/a.py", "oldText": "x = 1\n", "newText": "x = 2\n"}


def test_the_change_is_shown_before_the_question() -> None:
    lines = list(render(decode(question(content=[DIFF])), colours=False))
    assert lines[0] == "punie wants to: edit_file: a.py"
    assert "  -x = 1" in lines
    assert "  +x = 2" in lines


def test_control_characters_of_a_file_do_not_reach_the_terminal() -> None:
    evil = {**DIFF, "newText": "\x1b]0;title\x07\x1b[2J\n"}
    text = "\n".join(render(decode(question(content=[evil])), colours=False))
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_long_diff_is_cut_and_says_so() -> None:
    long = {**DIFF, "newText": "".join(f"line {n}\n" for n in range(1000))}
    lines = list(render(decode(question(content=[long])), colours=False))
    assert len(lines) < 220
    assert "  … 804 more lines" in lines


def test_a_text_is_shown_as_it_is() -> None:
    text = "mode: trusted\n\x1b[2Jdeny path=*.lock\n" + "more\n" * 1000
    content = {"type": "content", "content": {"type": "text", "text": text}}
    lines = list(render(decode(question(content=[content], title="use \x1b it")), colours=False))
    assert lines[:3] == ["punie wants to: use ␛ it", "  mode: trusted", "  ␛[2Jdeny path=*.lock"]
    assert "  … 802 more lines" in lines


def test_a_call_without_a_diff_shows_all_it_was_given() -> None:
    command = "make test " + "x" * 200 + "\x1b[2K; rm -rf build"
    given = {"command": command, "timeout": 3}
    lines = list(render(decode(question(title="run_command: make", rawInput=given)), colours=False))
    assert "  command: " + command.replace("\x1b", "␛") in lines
    assert "  timeout: 3" in lines


def test_a_command_is_shown_whole_however_long_it_is() -> None:
    command = "make\n" + "\n" * 1000 + "rm -rf ~"
    shows: list[dict[str, Any]] = [
        {"rawInput": {"command": command, "network": True}},
        {"content": [{"type": "content", "content": {"type": "text", "text": fenced(command)}}]},
    ]
    for shown in shows:
        lines = list(render(decode(question(kind="execute", **shown)), colours=False))
        assert "  rm -rf ~" in lines
        assert not any("```" in line for line in lines)
        assert any("lines: scroll up" in line for line in lines)


def test_the_choices_are_the_questions_own_words() -> None:
    lines = list(render(decode(question(content=[DIFF])), colours=False))
    assert lines[-4:] == [
        "  [y] Allow once",
        "  [s] Allow for this session",
        "  [n] Reject",
        "  [never] Reject always",
    ]


def test_refusals_are_told_from_permissions() -> None:
    asked = decode(question())
    assert [asked.refuses(one["optionId"]) for one in OPTIONS] == [False, False, True, True]
    assert asked.refuses(None)


def test_whose_question_it_is() -> None:
    assert decode(question(toolCallId="p1:3")).is_of("p1")
    assert not decode(question(toolCallId="p1:3")).is_of("p2")
    assert decode(question(toolCallId="s1:settings:ab")).is_of("p2")


def test_outcomes_are_acps() -> None:
    assert outcome("allow-once") == {"outcome": {"outcome": "selected", "optionId": "allow-once"}}
    assert outcome(None) == {"outcome": {"outcome": "cancelled"}}


def on_a_terminal(typed: str, options: list[dict[str, str]] = OPTIONS) -> tuple[str, str]:
    """Ask in a child on a pseudo-terminal that `typed` is typed into; return its answer and what
    was shown."""
    program = (
        "import asyncio, sys\n"
        "from msgspec import Raw\n"
        "from punie_supervisor.cli import permission\n"
        "assert permission.is_interactive()\n"
        f"asked = permission.decode(Raw({bytes(question(options, content=[DIFF]))!r}))\n"
        "print(asyncio.run(permission.ask(asked)), flush=True)\n"
    )
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=follower,
        stderr=follower,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(follower)
    shown, deadline = b"", time.monotonic() + 15
    while b"? " not in shown and time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            shown += os.read(leader, 65536)
    os.write(leader, typed.encode())
    out, _ = child.communicate(timeout=15)
    while select.select([leader], [], [], 0)[0]:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # Linux: all of it is read, and nobody has the other end
            break
    os.close(leader)
    return out.strip(), shown.decode()


def test_answers_on_a_terminal() -> None:
    answer, shown = on_a_terminal("y\n")
    assert answer == "allow-once"
    assert "[y] Allow once" in shown
    assert "y, s, n, never? " in shown
    assert "\x1b[32m+x = 2" in shown


def test_what_is_no_answer_is_asked_again() -> None:
    answer, shown = on_a_terminal("what?\n\nnever\n")
    assert answer == "reject-always"
    assert shown.count("That is no answer. Type one of: y, s, n, never") == 2


def test_words_are_answers_too() -> None:
    assert on_a_terminal(" Session \n")[0] == "allow-for-session"


def test_the_end_of_input_is_a_dismissal() -> None:
    assert on_a_terminal("\x04")[0] == "None"


TRUST = [
    {"optionId": "trust-settings", "name": "Trust them", "kind": "allow_always"},
    {"optionId": "ignore-settings", "name": "Ignore them", "kind": "reject_once"},
]


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("y", "trust-settings"),
        ("yes", "trust-settings"),
        ("1", "trust-settings"),
        ("n", "ignore-settings"),
        ("2", "ignore-settings"),
    ],
)
def test_settings_are_trusted_by_a_letter_or_a_number(typed: str, answer: str) -> None:
    chosen, shown = on_a_terminal(f"{typed}\n", TRUST)
    assert chosen == answer
    assert "[y] Trust them" in shown
    assert "y, n? " in shown


def test_other_options_have_numbers() -> None:
    options = [
        {"optionId": "red", "name": "Red", "kind": "allow_once"},
        {"optionId": "x", "name": "Not red", "kind": "reject_once"},
    ]
    answer, shown = on_a_terminal("2\n", options)
    assert answer == "x"
    assert "[1] Red" in shown
    assert "1, 2? " in shown
