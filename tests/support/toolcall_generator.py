"""Makes tool calls well formed and then damages them the way models do, reproducibly.

    python -m tests.support.toolcall_generator --seed 1

writes ``tests/data/toolcalls/generated.jsonl``. What an entry is to become follows from what was
done to it, never from what the parser makes of it.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from punie_model_host.calls.formats import ToolCallFormat
from tests.support.toolcall_corpus import FOLDER, WELL_FORMED, Entry, NamedCall, Outcome
from tests.support.toolcall_writers import WRITERS, Calls, as_text, qwen_function

SEED: Final = 1
_CUT: Final = "limit of tokens"
_PATHS: Final = ("src/app.py", "README.md", "tests/test_größe.py", "a b/c.txt", "pkg/__init__.py")
_TEXTS: Final = (
    "def f(x: int) -> int:\n    return x * 2\n",
    "if a < b and c > d:\n    print(\"less\", 'more')",
    "  indented\n\n\nend  ",
    '{"key": [1, 2, {"nested": "yes"}]}',
    "<div class='x'>\n  <p>text &amp; more</p>\n</div>",
    "größer 日本語 🎉\ttab",
    "path = r'C:\\temp\\new'\nassert re.match(r\"\\d+\\.\\w*\", s)",
    "x",
    "",
)
_PATTERNS: Final = ("TODO", "def main", r"\bclass\s+\w+\(", 'print("', "a|b")
_SAYS: Final = ("I look at it.", "Let me change that:", "First the tests.\n\nThen the code.")
_CLOSER: Final = {
    ToolCallFormat.QWEN3_CODER: "</tool_call>",
    ToolCallFormat.JSON: "</tool_call>",
    ToolCallFormat.GLM47: "</tool_call>",
    ToolCallFormat.LONGCAT: "</longcat_tool_call>",
    ToolCallFormat.MINIMAX_M2: "</minimax:tool_call>",
    ToolCallFormat.MUSE_SPARK: "</atem:function_calls>",
    ToolCallFormat.KIMI_K2: "<|tool_calls_section_end|>",
    ToolCallFormat.KIMI_K3: "<|close|>tools<|sep|>",
    ToolCallFormat.GEMMA4: "<tool_call|>",
    ToolCallFormat.FUNCTION_GEMMA: "<end_function_call>",
    ToolCallFormat.PYTHONIC: "<|tool_call_end|>",
}
"""What ends a block; Mistral and MiniCPM have none."""

type Made = tuple[str, Outcome]
type Maker = Callable[[random.Random, ToolCallFormat], Made]


class _NotForThisError(Exception):
    """The draw does not allow the damage: draw again."""


def _call(rng: random.Random) -> tuple[str, dict[str, Any]]:
    path = rng.choice(_PATHS)
    match rng.randrange(5):
        case 0:
            return "read_file", {"path": path, "start_line": rng.randrange(1, 900)}
        case 1:
            return "write_file", {"path": path, "content": rng.choice(_TEXTS)}
        case 2:
            old, new = rng.sample(_TEXTS[:-1], 2)
            texts = {"old_text": old, "new_text": new, "replace_all": rng.random() < 0.5}
            return "edit_file", {"path": path, **texts}
        case 3:
            paths = rng.sample(_PATHS, rng.randrange(1, 3))
            return "search", {"pattern": rng.choice(_PATTERNS), "paths": paths, "limit": 20}
        case _:
            return "run_command", {"command": "pytest -q -k 'not slow'", "timeout": 2.5}


def _calls(rng: random.Random, least: int = 1, most: int = 3) -> Calls:
    return [_call(rng) for _ in range(rng.randint(least, most))]


def _outcome(calls: Calls, text: str = "", thinking: str = "", fault: str | None = None) -> Outcome:
    return Outcome([NamedCall(*call) for call in calls], text, thinking, fault)


# for every format


def well_formed(rng: random.Random, format: ToolCallFormat) -> Made:
    calls, says = _calls(rng), rng.choice(("", *_SAYS))
    return (f"{says}\n\n" if says else "") + WRITERS[format](calls), _outcome(calls, says)


def text_behind(rng: random.Random, format: ToolCallFormat) -> Made:
    calls, says = _calls(rng), rng.choice(_SAYS)
    return f"{WRITERS[format](calls)}\n\n{says}", _outcome(calls, says)


def no_end_of_block(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng, most=1)
    text = WRITERS[format](calls)
    closer = _CLOSER.get(format, "</function>" if format is ToolCallFormat.MINICPM5 else "}")
    return text.rstrip().removesuffix(closer), _outcome(calls)


def cut(rng: random.Random, format: ToolCallFormat) -> Made:
    """Cut inside the last value of the last call, the calls before are whole."""
    before, (name, arguments) = _calls(rng, 0, 2), ("write_file", {"path": rng.choice(_PATHS)})
    marker = "CUT HERE"
    text = WRITERS[format]([*before, (name, arguments | {"content": f"x = 1\n{marker}"})])
    return text[: text.index(marker) + rng.randrange(len(marker))], _outcome(before, fault=_CUT)


def other_name(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng, most=1)
    ((name, arguments),) = calls
    camel = "".join(part.title() for part in name.split("_"))
    ways = [camel, name.upper(), name.replace("_", "-"), f"functions.{name}"]
    return WRITERS[format]([(rng.choice(ways), arguments)]), _outcome(calls)


def wrong_types(rng: random.Random, format: ToolCallFormat) -> Made:
    """Numbers and booleans as text, numbers with a point, a word alone for an array."""
    number, path, flag = rng.randrange(1, 99), rng.choice(_PATHS), rng.random() < 0.5
    wrong = [
        ("read_file", {"path": path, "start_line": f"{number}", "end_line": f"{number + 9}.0"}),
        ("search", {"pattern": "x", "paths": path, "limit": f" {number} "}),
        (
            "edit_file",
            {"path": path, "old_text": "1", "new_text": "null", "replace_all": f"{flag}"},
        ),
    ]
    right = [
        ("read_file", {"path": path, "start_line": number, "end_line": number + 9}),
        ("search", {"pattern": "x", "paths": [path], "limit": number}),
        ("edit_file", {"path": path, "old_text": "1", "new_text": "null", "replace_all": flag}),
    ]
    chosen = rng.randrange(len(wrong))
    return WRITERS[format]([wrong[chosen]]), _outcome([right[chosen]])


def closings_in_value(rng: random.Random, format: ToolCallFormat) -> Made:
    """A file that has the format's own closing tags in the middle of lines."""
    tags = re.findall(r"</[\w:]+>|<\|?[\w]+\|?>", WRITERS[format]([("list_files", {})]))
    tags = [tag for tag in tags if tag != "<|sep|>" and not tag.startswith("<|open")]
    tags = tags or [_CLOSER.get(format, "</param>")]
    lines = [f'TAG_{n} = "{rng.choice(tags)}"  # a tag' for n in range(rng.randint(1, 3))]
    calls: Calls = [("write_file", {"path": "tags.py", "content": "\n".join(lines)})]
    return WRITERS[format](calls), _outcome(calls)


def thinking_open(rng: random.Random, format: ToolCallFormat) -> Made:
    calls, says = _calls(rng), rng.choice(_SAYS)
    return f"<think>\n{says}\n{WRITERS[format](calls)}", _outcome(calls, thinking=says)


# Qwen's tags


def _qwen(calls: Calls) -> str:
    return WRITERS[ToolCallFormat.QWEN3_CODER](calls)


def no_opener(rng: random.Random, format: ToolCallFormat) -> Made:
    calls, says = _calls(rng), rng.choice(("", *_SAYS))
    functions = "\n".join(qwen_function(*call) for call in calls)
    ending = rng.choice(("", "\n</tool_call>"))
    return (f"{says}\n\n" if says else "") + functions + ending, _outcome(calls, says)


def several_in_block(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng, 2)
    functions = "\n".join(qwen_function(*call) for call in calls)
    return f"<tool_call>\n{functions}\n</tool_call>", _outcome(calls)


def closings_lost(rng: random.Random, format: ToolCallFormat) -> Made:
    """Some of the closing tags, never all that end the last value."""
    calls = _calls(rng, most=1)
    text = _qwen(calls)
    lost = rng.choice(("</parameter>\n</function>\n", "</function>\n", "last", "inner"))
    if lost == "inner":
        at = text.find("</parameter>\n<parameter=")
        if at < 0:
            raise _NotForThisError
        return text[:at] + text[at + len("</parameter>\n") :], _outcome(calls)
    if lost == "last":
        at = text.rfind("</parameter>\n")
        return text[:at] + text[at + len("</parameter>\n") :], _outcome(calls)
    return text.replace(lost, "", 1), _outcome(calls)


def attributes(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng)
    quote = rng.choice("\"'")
    written = re.sub(r"<(function|parameter)=(\w+)>", rf"<\1 name={quote}\2{quote}>", _qwen(calls))
    return written, _outcome(calls)


def named_closings(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng, most=1)
    name = calls[0][0]
    return _qwen(calls).replace("</function>", f"</function={name}>"), _outcome(calls)


def other_case(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng)
    way = rng.choice((str.upper, str.title))
    written = re.sub(
        r"</?(tool_call|function|parameter)\b", lambda found: way(found[0]), _qwen(calls)
    )
    return written, _outcome(calls)


def json_in_function(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng)
    blocks = [
        f"<tool_call>\n<function={name}>{json.dumps(arguments)}</function>\n</tool_call>"
        for name, arguments in calls
    ]
    return "\n".join(blocks), _outcome(calls)


def quoted_call(rng: random.Random, format: ToolCallFormat) -> Made:
    """A file that quotes a whole call."""
    content = f"Write\n{_qwen(_calls(rng))}\nand wait."
    calls: Calls = [("write_file", {"path": "guide.md", "content": content}), *_calls(rng, 0, 1)]
    return _qwen(calls), _outcome(calls)


def doubled_tags(rng: random.Random, format: ToolCallFormat) -> Made:
    calls = _calls(rng)
    tag = rng.choice(("<tool_call>\n", "\n</tool_call>", "</function>\n"))
    return _qwen(calls).replace(tag, tag * 2), _outcome(calls)


# JSON


def _object(rng: random.Random) -> tuple[str, Calls]:
    calls = _calls(rng, most=1)
    ((name, arguments),) = calls
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False), calls


def _block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def bare_object(rng: random.Random, format: ToolCallFormat) -> Made:
    body, calls = _object(rng)
    says = rng.choice(("", *_SAYS))
    ending = rng.choice(("", "\n</tool_call>"))
    return (f"{says}\n" if says else "") + body + ending, _outcome(calls, says)


def fenced_object(rng: random.Random, format: ToolCallFormat) -> Made:
    body, calls = _object(rng)
    fenced = f"```json\n{body}\n```"
    return rng.choice((fenced, _block(fenced))), _outcome(calls)


def trailing_commas(rng: random.Random, format: ToolCallFormat) -> Made:
    body, calls = _object(rng)
    return _block(body.removesuffix("}}") + ",},}"), _outcome(calls)


def braces(rng: random.Random, format: ToolCallFormat) -> Made:
    body, calls = _object(rng)
    return _block(rng.choice((body[:-1], body[:-2], body + "}"))), _outcome(calls)


def line_feeds(rng: random.Random, format: ToolCallFormat) -> Made:
    """Line feeds and tabs in strings, as they are."""
    body, calls = _object(rng)
    raw = re.sub(r"(?<!\\)\\([nt])", lambda found: {"n": "\n", "t": "\t"}[found[1]], body)
    if raw == body or "\\\\" in body:
        raise _NotForThisError
    return _block(raw), _outcome(calls)


def quotes(rng: random.Random, format: ToolCallFormat) -> Made:
    """Quotes in strings that were not escaped."""
    text = rng.choice(('print("hi")', 'say "a" and "b" now', 'x = d["key"] + 1', '"""doc"""\nx'))
    calls: Calls = [("write_file", {"path": "q.py", "content": text})]
    body = json.dumps({"name": "write_file", "arguments": calls[0][1]})
    return _block(body.replace('\\"', '"')), _outcome(calls)


def python_literal(rng: random.Random, format: ToolCallFormat) -> Made:
    _, calls = _object(rng)
    ((name, arguments),) = calls
    if "\\" in as_text(arguments):  # Python's escapes are those of JSON in all but a few
        raise _NotForThisError
    return _block(repr({"name": name, "arguments": arguments})), _outcome(calls)


def bare_keys(rng: random.Random, format: ToolCallFormat) -> Made:
    number = rng.randrange(100)
    calls: Calls = [("read_file", {"path": rng.choice(_PATHS), "start_line": number})]
    body = json.dumps({"name": "read_file", "arguments": calls[0][1]}, ensure_ascii=False)
    return _block(re.sub(r'"(\w+)":', r"\1:", body)), _outcome(calls)


def other_shapes(rng: random.Random, format: ToolCallFormat) -> Made:
    _, calls = _object(rng)
    ((name, arguments),) = calls
    shapes: list[Any] = [
        {"name": name, "parameters": arguments},
        {"name": name, "arguments": json.dumps(arguments)},
        {"type": "function", "function": {"name": name, "arguments": arguments}},
        [{"name": name, "arguments": arguments}],
        {"tool_calls": [{"name": name, "arguments": arguments}]},
        {name: arguments},
        {"name": name, **arguments},
    ]
    return _block(json.dumps(rng.choice(shapes), ensure_ascii=False)), _outcome(calls)


def unknown_escapes(rng: random.Random, format: ToolCallFormat) -> Made:
    pattern = rng.choice((r"\d+\.py", r"\w*\(", r"^\s+$"))
    calls: Calls = [("search", {"pattern": pattern, "limit": None})]
    body = json.dumps({"name": "search", "arguments": calls[0][1]})
    return _block(body.replace("\\\\", "\\")), _outcome(calls)


def several_objects(rng: random.Random, format: ToolCallFormat) -> Made:
    made = [_object(rng) for _ in range(rng.randint(2, 3))]
    separator = rng.choice(("\n", ",\n", "\n<tool_call>\n"))
    return _block(separator.join(body for body, _ in made)), _outcome(
        [call for _, calls in made for call in calls]
    )


EVERY: Final[dict[str, Maker]] = {
    WELL_FORMED: well_formed,
    "text behind a call": text_behind,
    "missing closing tags": no_end_of_block,
    "cut at the limit": cut,
    "name of the tool": other_name,
    "wrong type": wrong_types,
    "tags in a value": closings_in_value,
    "thinking left open": thinking_open,
}
"""Kinds for every format."""

QWEN: Final[dict[str, tuple[Maker, ...]]] = {
    "missing opener": (no_opener,),
    "several calls in a block": (several_in_block,),
    "missing closing tags": (closings_lost,),
    "other spelling of tags": (attributes, named_closings, other_case, json_in_function),
    "tags in a value": (quoted_call,),
    "duplicate tags": (doubled_tags,),
}

JSON: Final[dict[str, tuple[Maker, ...]]] = {
    "missing opener": (bare_object,),
    "Markdown fence": (fenced_object,),
    "several calls in a block": (several_objects,),
    "damaged JSON": (
        trailing_commas,
        braces,
        line_feeds,
        quotes,
        python_literal,
        bare_keys,
        unknown_escapes,
    ),
    "other shape of JSON": (other_shapes,),
}


def generate(seed: int) -> list[Entry]:
    """Return the entries of `seed`, always the same ones in the same order."""
    made: list[Entry] = []
    numbers: Counter[str] = Counter()
    for kind, format, maker, times in _plan():
        for _ in range(times):
            name = f"{format}-{kind.replace(' ', '-')}".lower()
            numbers[name] += 1
            id = f"{name}-{numbers[name]}"
            text, outcome = _draw(random.Random(f"{seed} {id}"), maker, format)
            entry = Entry(id=id, kind=kind, format=format, text=text, expect=outcome)
            made.append(msgspec.structs.replace(entry, cut=maker is cut))
    return made


def lines(seed: int) -> str:
    """Return the file of `seed`."""
    return "".join(msgspec.json.encode(entry).decode() + "\n" for entry in generate(seed))


def _plan() -> Iterator[tuple[str, ToolCallFormat, Maker, int]]:
    for format in ToolCallFormat:
        for kind, maker in EVERY.items():
            if not (maker is thinking_open and format in _NO_THINKING):
                yield kind, format, maker, 3
    for format, kinds in ((ToolCallFormat.QWEN3_CODER, QWEN), (ToolCallFormat.JSON, JSON)):
        for kind, makers in kinds.items():
            for maker in makers:
                yield kind, format, maker, 6


_NO_THINKING: Final = (ToolCallFormat.MINICPM5, ToolCallFormat.KIMI_K3)
"""Formats whose calls have no opener of their own, or that think in other tags."""


def _draw(rng: random.Random, maker: Maker, format: ToolCallFormat) -> Made:
    while True:
        try:
            return maker(rng, format)
        except _NotForThisError:
            continue


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    seed = parser.parse_args().seed
    (FOLDER / "generated.jsonl").write_text(lines(seed), "utf-8")


if __name__ == "__main__":
    main()
