"""The programs the embedded model writes: one per kind of question, built from fixed fragments.

Each program is ``fragment + name + fragment [+ scope + fragment]``. A fragment is one token of
the vocabulary, so writing a program means choosing fragments and copying names.
The language is the Monty subset of Python; ``list_files``, ``search`` and ``read_file`` are the
tools of Punie's ``execute_code``. Search patterns are ripgrep (Rust) expressions.
"""

FIND_LIMIT = 40
"""Most files an answer lists."""
LIST_LIMIT = 20
"""Most search results an answer lists."""

_MORE = '\nif r.{n} > {k}:\n    print(f"… and {{r.{n} - {k}}} more")'

LIST_OPEN = 'r = list_files("'
FIND_END = '")\nprint(r.count)\nfor f in r.files[:40]:\n    print(f)' + _MORE.format(
    n="count", k=40
)
COUNT_END = '")\nprint(r.count)'
TOTAL_END = (
    '")\nn = 0\nfor f in r.files:\n    n += read_file(f, 1, 1).total_lines\n'
    "print(r.count)\nprint(n)"
)

TITLE_OPEN = 'text = read_file("'
TITLE_END = (
    '").text\n'
    'lines = [s.strip() for s in text.splitlines() if s.strip(" =-~*#")]\n'
    'heads = [s[2:] for s in lines if s.startswith("# ")]\n'
    'if not heads or lines[0][:1] in "\\"\'":\n'
    "    heads = lines\n"
    "if heads:\n"
    '    print(heads[0].strip("\\"\' "))'
)
LINES_OPEN = 'print(read_file("'
LINES_END = '", 1, 1).total_lines)'

_HITS = (
    '\nprint(r.match_count)\nfor m in r.matches[:20]:\n    print(f"{m.file}:{m.line}")'
    + _MORE.format(n="match_count", k=20)
)
MATCH_END = '")\nprint(r.match_count)'
HITS_END = '")' + _HITS

GREP_OPEN = 'import re\nr = search(re.escape("'
GREP_END = '"))' + _HITS
GREP_COUNT_END = '"))\nprint(r.match_count)'
GREP_SCOPE = '"), "'

BASE_OPEN = 'base = "'
BASE_MID = (
    '".split(".")[-1]\nr = search(r"^\\s*class\\s+\\w+(\\[.*\\])?\\s*\\(([^)]*[\\s,.])?"'
    ' + base + r"\\s*([,)\\[]|$)", "*.py'
)
BASE_END = (
    '")\nprint(r.match_count)\nfor m in r.matches[:20]:\n'
    '    c = m.text.split("class", 1)[1].split("(")[0].split("[")[0].strip()\n'
    '    print(f"{c} ({m.file}:{m.line})")' + _MORE.format(n="match_count", k=20)
)

NAME_OPEN = 'name = "'
NAME_MID = (
    '".split(".")[-1]\nr = search(r"^\\s*((async\\s+)?def|class)\\s+" + name'
    ' + r"\\b|^" + name + r"\\s*[:=]", "*.py'
)

MODULE_OPEN = 'import re\nmodule = re.escape("'
MODULE_MID = (
    '")\nr = search(r"^\\s*(from\\s+" + module + r"\\b|(from\\s+\\S+\\s+)?import\\s+(.*[\\s,(])?"'
    ' + module + r"\\b)", "*.py'
)
MODULE_END = (
    '", limit=1000)\nfiles = sorted({m.file for m in r.matches})\nprint(len(files))\n'
    "for f in files[:20]:\n    print(f)\n"
    'if len(files) > 20:\n    print(f"… and {len(files) - 20} more")'
)

CLASSES = 'r = search(r"^\\s*class\\s+\\w", "'
FUNCTIONS = 'r = search(r"^\\s*(async\\s+)?def\\s+\\w", "'
TESTS = 'r = search(r"^\\s*(async\\s+)?def\\s+test_", "'

FUNCTIONS_END = BASE_END.replace('"class"', '"def"')

SCOPE = '", "'
"""Between two string arguments: glob, then folder."""


def find(pattern: str, folder: str = "") -> str:
    """Lists the files that match a glob, at most ``FIND_LIMIT`` of them."""
    return LIST_OPEN + pattern + (SCOPE + folder if folder else "") + FIND_END


def count(pattern: str, folder: str = "") -> str:
    """Counts the files that match a glob."""
    return LIST_OPEN + pattern + (SCOPE + folder if folder else "") + COUNT_END


def total_lines(pattern: str, folder: str = "") -> str:
    """Counts the files that match a glob, and their lines."""
    return LIST_OPEN + pattern + (SCOPE + folder if folder else "") + TOTAL_END


def title(path: str) -> str:
    """Prints the first heading of a file, else its first line."""
    return TITLE_OPEN + path + TITLE_END


def lines(path: str) -> str:
    """Prints how many lines a file has."""
    return LINES_OPEN + path + LINES_END


def _scope(glob: str, folder: str) -> str:
    return glob + (SCOPE + folder if folder else "")


def grep(word: str, glob: str = "", folder: str = "") -> str:
    """Prints where a text occurs; ``glob`` may be the path of one file."""
    if not glob and not folder:
        return GREP_OPEN + word + GREP_END
    return GREP_OPEN + word + GREP_SCOPE + _scope(glob or "*", folder) + HITS_END


def grep_count(word: str, glob: str = "", folder: str = "") -> str:
    """Prints how many lines contain a text."""
    if not glob and not folder:
        return GREP_OPEN + word + GREP_COUNT_END
    return GREP_OPEN + word + GREP_SCOPE + _scope(glob or "*", folder) + MATCH_END


def subclasses(name: str, folder: str = "") -> str:
    """Prints the classes whose bases on the ``class`` line name ``name``."""
    return BASE_OPEN + name + BASE_MID + (SCOPE + folder if folder else "") + BASE_END


def definition(name: str, folder: str = "") -> str:
    """Prints where a class, function or module-level name is defined."""
    return NAME_OPEN + name + NAME_MID + (SCOPE + folder if folder else "") + HITS_END


def importers(name: str, folder: str = "") -> str:
    """Prints the files that import a module."""
    return MODULE_OPEN + name + MODULE_MID + (SCOPE + folder if folder else "") + MODULE_END


def count_symbols(start: str, glob: str = "*.py", folder: str = "") -> str:
    """Counts definitions; ``start`` is ``CLASSES``, ``FUNCTIONS`` or ``TESTS``."""
    return start + _scope(glob, folder) + MATCH_END


def list_symbols(start: str, glob: str = "*.py", folder: str = "") -> str:
    """Prints definitions with their places; ``start`` as for ``count_symbols``."""
    return start + _scope(glob, folder) + (BASE_END if start == CLASSES else FUNCTIONS_END)


FRAGMENTS = [
    LIST_OPEN, FIND_END, COUNT_END, TOTAL_END, TITLE_OPEN, TITLE_END, LINES_OPEN, LINES_END,
    HITS_END, GREP_OPEN, GREP_END, GREP_COUNT_END, GREP_SCOPE, BASE_OPEN, BASE_MID, BASE_END,
    NAME_OPEN, NAME_MID, MODULE_OPEN, MODULE_MID, MODULE_END, CLASSES, FUNCTIONS, TESTS, SCOPE,
    MATCH_END, FUNCTIONS_END,
]  # fmt: skip
"""Every fragment: each is one token."""
