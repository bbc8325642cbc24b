"""What to write instead of what the sandbox's Python does not have. Pure, one table a kind.

The patterns are of messages of Monty 1.4 and its type checker; `tests/data/code_mode.toml` has a
program for each rule.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from punie_protocol.tool_types import Result
from punie_protocol.tool_views import result_classes, signature
from punie_protocol.tools import TOOLS

_READ: Final = "use read_file(path).text"
_WRITE: Final = "use write_file(path, text) or edit_file(path, old_text, new_text)"
_OPEN: Final = f"{_READ}; to write {_WRITE}"
_LIST: Final = 'use list_files("*.py").files'
_COMMAND: Final = 'use run_command(["program", "argument"])'
_TESTS: Final = "use pytest_run(path)"
_PLAIN: Final = "write a plain function outside the class"
_NO_ATTRIBUTES: Final = "use the attributes you know, or a dict"
_LOOP: Final = "write a loop"

MODULES: Final = (
    "re json math random time datetime collections itertools functools dataclasses typing "
    "hashlib base64 csv tomllib decimal copy bisect unicodedata"
)
"""What may be imported and is of use."""


class Rule(NamedTuple):
    """Who finds `pattern` in a message is told `advice`; ``\\1`` is the pattern's group."""

    pattern: str
    advice: str


RULES: Final = (
    Rule("support yield", "build a list and return it"),
    Rule(
        "class inheritance|metaclasses",
        "write a class without bases; a @dataclass for records, ValueError for errors of your own",
    ),
    Rule("method decorators", "write a plain method and call it: x.size()"),
    Rule("'del' statement", "use d.pop(key), list.pop(i), or build a new list"),
    Rule("exception groups", "use try / except"),
    Rule("type aliases", "write X = int"),
    Rule("template strings", "use an f-string"),
    Rule("async for|async context", "tools are plain functions: no async, no await"),
    Rule("is not awaitable|can't be awaited", "tools are plain functions: no async, no await"),
    Rule(
        "callable replacement",
        r'use a replacement string, re.sub(p, r"<\\1>", s), or loop over re.finditer',
    ),
    Rule("'re' has no attribute 'subn'", "use re.sub and len(re.findall(...))"),
    Rule(r"type object 'str' has no attribute 'maketrans'", "use replace()"),
    Rule(r"type object 'str' has no attribute '(\w+)'", r"write lambda s: s.\1()"),
    Rule("'dict' object has no attribute 'get'", "write lambda k: d[k]"),
    Rule("'list' object is not an iterator", "write next(iter([...]), None)"),
    Rule(r"object of type '\w+' has no len", "classes have no len(): write a method"),
    Rule("'<' not supported between", "give sorted, min or max a key=lambda x: ... of one type"),
    Rule("has no attribute '__dict__'", "name the attributes"),
    Rule("has no attribute '__(class|name|cause)__'", "use type(x).__name__ and str(x)"),
    Rule("unexpected keyword argument 'default'", "convert the values before json.dumps"),
    Rule("is not JSON serializable", 'make a dict of what you need: {"file": m.file}'),
    Rule("Module `sys` has no member `exit`", "let the program end; return from a function"),
    Rule("Module `os` has no member", _COMMAND),
    Rule("has no member `OrderedDict`", "use a dict: it keeps its order"),
    Rule("has no attribute 'format_map'", "use an f-string or .format(**d)"),
    Rule(
        "cannot suspend in this synchronous context",
        "call the tool in a for loop or a comprehension, not in map, filter or key=",
    ),
    Rule("recursion depth", "use a loop with a list of what is left to do"),
    Rule("type `Exception` has no attribute `message`", "use str(error)"),
)
"""Looked through in order; the first that is found counts."""

NAMES: Final[dict[str, str]] = {
    "open": _OPEN,
    "input": "nobody can answer in here: end the program and ask the user",
    "property": _PLAIN,
    "staticmethod": _PLAIN,
    "classmethod": _PLAIN,
    "super": "classes have no bases in here",
    "callable": _NO_ATTRIBUTES,
    "vars": _NO_ATTRIBUTES,
    "dir": _NO_ATTRIBUTES,
    "globals": _NO_ATTRIBUTES,
    "locals": _NO_ATTRIBUTES,
    "delattr": _NO_ATTRIBUTES,
    "bytearray": "use bytes or a list",
    "help": "the functions are listed in your instructions",
    "breakpoint": "use print",
    "__import__": "write import at the top",
    "compile": "run your code directly",
    "execute_code": "you are inside execute_code: write the code itself",
    "FileNotFoundError": 'tools raise RuntimeError("not_found: ..."): catch RuntimeError',
    "PermissionError": 'tools raise RuntimeError("kind: message"): catch RuntimeError',
    "OSError": 'tools raise RuntimeError("kind: message"): catch RuntimeError',
    "IOError": 'tools raise RuntimeError("kind: message"): catch RuntimeError',
    "ExceptionGroup": "raise ValueError or RuntimeError",
    "glob": _LIST,
    "ls": _LIST,
    "list_dir": _LIST,
    "listdir": _LIST,
    "find": _LIST,
    "grep": "use search(pattern).matches",
    "rg": "use search(pattern).matches",
    "cat": _READ,
    "run": _COMMAND,
    "bash": _COMMAND,
    "shell": _COMMAND,
    "ruff": "use ruff_check(path)",
    "mypy": "use typecheck(path)",
    "ty": "use typecheck(path)",
    "str_replace": "use edit_file(path, old_text, new_text)",
}
"""Names that a program may expect and that are not there."""

IMPORTS: Final[dict[str, str]] = {
    "subprocess": _COMMAND,
    "shutil": "use move_file, delete_file or write_file",
    "glob": _LIST,
    "fnmatch": f"{_LIST}, or endswith()",
    "io": f"{_READ}, text.splitlines()",
    "tempfile": "keep values in variables",
    "ast": "use symbols(path)",
    "inspect": "use symbols(path)",
    "tokenize": "use symbols(path) or re",
    "importlib": "the project's code cannot be run in here: read it",
    "difflib": "use the diff of an edit's result, or git_diff()",
    "textwrap": "use splitlines() and join()",
    "string": 'write the characters: "abc..."',
    "operator": "write lambda x: x[1]",
    "enum": "write constants",
    "abc": "write a class without bases",
    "types": "use a dict or a @dataclass",
    "contextlib": "use try / except",
    "statistics": "use sum(xs) / len(xs) or sorted(xs)",
    "heapq": "use sorted()",
    "pprint": "use print or json.dumps(x, indent=2)",
    "logging": "use print",
    "warnings": "use print",
    "traceback": "use str(error)",
    "collections.abc": "use typing, or leave the type hints out",
    "yaml": "read the text line by line; there are json and tomllib",
    "pytest": _TESTS,
    "unittest": _TESTS,
    "requests": "there is no network in here",
    "urllib": "there is no network in here",
    "http": "there is no network in here",
    "socket": "there is no network in here",
    "httpx": "there is no network in here",
    "threading": "calls run one after the other: use a loop",
    "concurrent": "calls run one after the other: use a loop",
    "multiprocessing": "calls run one after the other: use a loop",
    "argparse": "write the values into the program",
    "numpy": "use lists and math",
    "pandas": "use lists of dicts",
}
"""Modules that a program may expect and that are not there."""

OS_CALLS: Final[dict[str, str]] = {
    "open": _OPEN,
    "Path.read_text": _READ,
    "Path.read_bytes": _READ,
    "Path.write_text": _WRITE,
    "Path.write_bytes": _WRITE,
    "Path.append_text": _WRITE,
    "Path.append_bytes": _WRITE,
    "Path.iterdir": _LIST,
    "Path.scan": _LIST,
    "Path.exists": "use list_files(pattern).count, or read_file in try / except RuntimeError",
    "Path.is_file": "use list_files(pattern).count, or read_file in try / except RuntimeError",
    "Path.is_dir": "use list_files(path=folder).count",
    "Path.stat": "use len(read_file(path).text)",
    "Path.mkdir": "write_file makes the folders it needs",
    "Path.unlink": "use delete_file(path)",
    "Path.rename": "use move_file(path, destination)",
    "os.getenv": "there is no environment in here",
    "os.environ": "there is no environment in here",
}
"""What a program asks the operating system for."""

_RESULTS: Final = result_classes()
_RESULT = re.compile(rf"type `({'|'.join(_RESULTS)})`|found `({'|'.join(_RESULTS)})`")
_FUNCTION = re.compile(rf"function `({'|'.join(TOOLS)})`")
_NAME = re.compile(r"Name `(\w+)` used when not defined|name '(\w+)' is not defined")
_MODULE = re.compile(r"imported module `([\w.]+)`|No module named '([\w.]+)'")
_UNSUPPORTED = "The monty syntax parser does not yet support "


def advice(message: str) -> str:
    """Return what to write instead of what `message` complains of, or nothing."""
    if found := _NAME.search(message):
        return name_advice(found[1] or found[2])
    if found := _MODULE.search(message):
        return _import_advice(found[1] or found[2])
    if found := _FUNCTION.search(message):
        return signature(TOOLS[found[1]])
    if found := _RESULT.search(message):
        return _result_advice(_RESULTS[found[1] or found[2]])
    for rule in RULES:
        if found := re.search(rule.pattern, message):
            return found.expand(rule.advice) if "\\" in rule.advice else rule.advice
    return ""


def name_advice(name: str) -> str:
    """Return what to write instead of an unknown name, or nothing."""
    if name in NAMES:
        return NAMES[name]
    if name in MODULES.split():
        return f"import {name} first"
    close = difflib.get_close_matches(name, [one.name for one in TOOLS.values() if one.code_mode])
    return f"do you mean {close[0]}?" if close else ""


def os_advice(function: str) -> str:
    """Return the text of the error that a program gets for a call of the operating system."""
    instead = OS_CALLS.get(function, "use the tools")
    shown = "Path.glob and os.listdir" if function == "Path.scan" else function
    return f"{shown}: not available in here: {instead}"


def plain(message: str) -> str:
    """Return a message of the sandbox without its own name."""
    return message.replace(_UNSUPPORTED, "there are no ")


def _import_advice(module: str) -> str:
    instead = IMPORTS.get(module) or IMPORTS.get(module.partition(".")[0])
    if instead:
        return instead
    if any(name in module for name in ("punie", "tools")):
        return "the functions are built in: leave the import out"
    return f"only these can be imported: {', '.join(MODULES.split())}"


def _result_advice(cls: type[Result]) -> str:
    return f"{cls.__name__} has only: {', '.join(_fields(cls))}"


def _fields(cls: type[Result]) -> Iterable[str]:
    return (field.name for field in msgspec.structs.fields(cls))
