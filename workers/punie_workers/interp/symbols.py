"""What one Python file defines and uses, from its syntax tree.

Defined are classes, functions, methods, and the variables that an assignment, an annotation or
``type`` binds in a module or a class; what a function does not show outside, its variables, is
left out. Used is every name that is read, deleted or changed in place, every attribute, each part
of what an import names, the keywords of calls, and what ``global`` and ``nonlocal`` name. A mere
binding is no use; strings and comments hold none. Names are compared as text: two methods of one
name are not told apart.
"""

import ast
import sys
import warnings
from array import array
from collections.abc import Iterator
from typing import NamedTuple

MAX_SIGNATURE = 200
"""Characters of a signature."""

CLASS, FUNCTION, METHOD, VARIABLE = "class", "function", "method", "variable"


class Definition(NamedTuple):
    """`name` is qualified; lines count from 1."""

    name: str
    kind: str
    line: int
    end_line: int
    signature: str


class Module:
    """What a file holds. `definitions` are in order of line; `uses` maps a name to pairs of a
    line and 1 + the index of the innermost definition around it (0: none), sorted, one a line.
    `size` is about how many bytes of memory that takes."""

    __slots__ = ("definitions", "size", "uses")

    def __init__(self, definitions: list[Definition], uses: dict[str, array[int]]) -> None:
        self.definitions = definitions
        self.uses = uses
        self.size = _size(definitions, uses)

    def defines(self, name: str) -> Iterator[Definition]:
        """Yield the definitions that `name`, qualified or its last parts, stands for."""
        tail = "." + name
        return (one for one in self.definitions if one.name == name or one.name.endswith(tail))

    def refers(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield the line and the enclosing definition of each use of the last part of `name`."""
        pairs = self.uses.get(name.rpartition(".")[2], array("I"))
        for line, inside in zip(pairs[::2], pairs[1::2], strict=True):
            yield line, self.definitions[inside - 1].name if inside else ""


def parse(data: bytes) -> Module | None:
    """Return what the source `data` holds, or ``None`` when it does not parse, be it wrong or
    nested too deeply. Python's warnings about it are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(data)
    except SyntaxError, ValueError, RecursionError, MemoryError:
        return None
    return _Reader(data).read(tree)


def lines_of(data: bytes) -> list[str]:
    """Return the lines of a source as the parser counts them."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


class _Scope(NamedTuple):
    """Where a node stands: 1 + the index of its definition, that one's name and kind."""

    index: int
    name: str
    kind: str

    def qualify(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


_MODULE = _Scope(0, "", "module")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
type _Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Reader:
    """Walks one tree with a stack of its own: a tree may be deeper than Python's."""

    def __init__(self, data: bytes) -> None:
        self._lines = lines_of(data)
        self._definitions: list[Definition] = []
        self._uses: dict[str, dict[int, int]] = {}

    def read(self, tree: ast.Module) -> Module:
        todo: list[tuple[ast.AST, _Scope]] = [(tree, _MODULE)]
        while todo:
            node, scope = todo.pop()
            inner = self._visit(node, scope)
            todo += [(child, inner) for child in _children(node)]
        uses = {sys.intern(name): _pairs(lines) for name, lines in self._uses.items()}
        return Module(self._definitions, uses)

    def _visit(self, node: ast.AST, scope: _Scope) -> _Scope:
        """Note what `node` itself defines or uses; return the scope of what is below it."""
        match node:
            case ast.Name(ctx=ast.Load() | ast.Del()):
                self._use(node.id, node.lineno, scope)
            case ast.Attribute():
                self._use(node.attr, node.end_lineno or node.lineno, scope)
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                return self._define(node, scope)
            case ast.Assign() | ast.AnnAssign() | ast.TypeAlias() | ast.AugAssign():
                self._assign(node, scope)
            case ast.alias() | ast.ImportFrom() | ast.keyword() | ast.Global() | ast.Nonlocal():
                for name in _named(node):
                    self._use(name, node.lineno, scope)
            case _:
                pass
        return scope

    def _use(self, name: str, line: int, scope: _Scope) -> None:
        lines = self._uses.setdefault(name, {})
        lines[line] = max(lines.get(line, 0), scope.index)

    def _define(self, node: ast.ClassDef | _Function, scope: _Scope) -> _Scope:
        if isinstance(node, ast.ClassDef):
            kind = CLASS
        else:
            kind = METHOD if scope.kind == CLASS else FUNCTION
        name = scope.qualify(node.name)
        self._add(name, kind, node, self._head(node))
        return _Scope(len(self._definitions), name, kind)

    def _assign(
        self, node: ast.Assign | ast.AnnAssign | ast.TypeAlias | ast.AugAssign, scope: _Scope
    ) -> None:
        if isinstance(node, ast.AugAssign):
            if isinstance(node.target, ast.Name):
                self._use(node.target.id, node.target.lineno, scope)
        elif scope.kind in (_MODULE.kind, CLASS):
            for name in _targets(node):
                self._add(scope.qualify(name), VARIABLE, node, self._statement(node))

    def _add(self, name: str, kind: str, node: ast.stmt, signature: str) -> None:
        end = node.end_lineno or node.lineno
        cut = _cut(signature, MAX_SIGNATURE)
        self._definitions.append(Definition(sys.intern(name), kind, node.lineno, end, cut))

    def _head(self, node: ast.ClassDef | _Function) -> str:
        """Return the head as it is written, or written anew when it takes several lines."""
        text = self._lines[node.lineno - 1].strip()
        if node.body[0].lineno > node.lineno and text.endswith(":") and _is_whole(text):
            return text[:-1]
        try:
            return _unparsed(node)
        except RecursionError:
            return f"{'class' if isinstance(node, ast.ClassDef) else 'def'} {node.name} …"

    def _statement(self, node: ast.stmt) -> str:
        line = self._lines[node.lineno - 1].encode()
        if node.end_lineno == node.lineno:
            return line[node.col_offset : node.end_col_offset].decode("utf-8", "replace")
        return line[node.col_offset :].decode("utf-8", "replace").rstrip() + " …"


def _children(node: ast.AST) -> list[ast.AST]:
    """Return the nodes right below, the last one first: they go on a stack."""
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            found.append(value)
        elif isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST)]
    found.reverse()
    return found


def _named(
    node: ast.alias | ast.ImportFrom | ast.keyword | ast.Global | ast.Nonlocal,
) -> list[str]:
    match node:
        case ast.alias(name=name):
            return name.split(".")
        case ast.ImportFrom(module=module):
            return module.split(".") if module else []
        case ast.keyword(arg=name):
            return [name] if name else []
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            return names


def _targets(node: ast.Assign | ast.AnnAssign | ast.TypeAlias) -> Iterator[str]:
    """Yield the plain names that a statement binds, in order."""
    todo: list[ast.expr]
    match node:
        case ast.Assign(targets=targets):
            todo = list(reversed(targets))
        case ast.AnnAssign(target=target):
            todo = [target]
        case ast.TypeAlias(name=target):
            todo = [target]
    while todo:
        match todo.pop():
            case ast.Name(id=name):
                yield name
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                todo += reversed(parts)
            case ast.Starred(value=value):
                todo.append(value)
            case _:
                pass


def _is_whole(head: str) -> bool:
    closed = all(head.count(a) == head.count(b) for a, b in ("()", "[]", "{}"))
    return closed and "#" not in head


def _unparsed(node: ast.ClassDef | _Function) -> str:
    types = f"[{', '.join(map(ast.unparse, node.type_params))}]" if node.type_params else ""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
        return f"class {node.name}{types}" + (f"({bases})" if bases else "")
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}{types}({ast.unparse(node.args)}){result}"


def _pairs(lines: dict[int, int]) -> array[int]:
    return array("I", [number for pair in sorted(lines.items()) for number in pair])


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _size(definitions: list[Definition], uses: dict[str, array[int]]) -> int:
    texts = sum(len(one.name) + len(one.signature) + 200 for one in definitions)
    return 500 + texts + sum(len(name) + 130 + 4 * len(pairs) for name, pairs in uses.items())
