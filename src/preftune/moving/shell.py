"""Read the training commands in a shell script, without running it.

Assignments, continuation lines, quotes, here-documents, arrays, ${NAME:-default} and integer arithmetic are understood.
A variable that is set inside if, for, while, case or a function has no certain value. It stays in the text as $NAME.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

NAME = r"[A-Za-z_]\w*"
ASSIGNMENT = re.compile(rf"(?:(?:export|readonly|local|declare)\s+(?:-\w+\s+)*)?({NAME})(\+?)=(.*)", re.DOTALL)
HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
READ = re.compile(rf"\bread\b.*?\s({NAME})\s*<<|\b({NAME})=\$\(\s*cat\s*<<")
OPENS = re.compile(r"(?:^|;|\s)(?:if|for|while|until|case)\s|\(\)\s*\{|^function\s")
CLOSES = re.compile(r"(?:^|;|\s)(?:fi|done|esac)\b|^\s*\}")
REDIRECTION = re.compile(
    r""""(?:\\.|[^"\\])*"|'[^']*'|(?:(?<=\s)\d)?(?:&>>?|>>?&?|<&?)\s*[^\s;&|]+"""  # quoted text is left as it is
)
REFERENCE = re.compile(rf"\$(?:({NAME})|\{{({NAME})(?:\[[@*]\])?(?::?-([^}}]*))?\}})")
EXPRESSION = re.compile(r"\$\(\(([^()]*(?:\([^()]*\)[^()]*)*)\)\)|\$\(\s*expr\s+([^()]*)\)|`\s*expr\s+([^`]*)`")
OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip


@dataclass
class Scope:
    """The variables at one line of a script. None is a value that is not certain."""

    variables: dict[str, str | None] = field(default_factory=dict)
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its words, the variables in front of it and those that were exported, and its line."""

    words: tuple[str, ...]
    environment: dict[str, str]
    line: int


def commands_of(text: str) -> Iterator[Command]:
    """Yield the commands of a script, with all variables whose value is certain replaced."""
    scope = Scope()
    for number, line in _logical_lines(text, scope):
        scope.depth += len(OPENS.findall(line))
        statement = line.strip()
        match = ASSIGNMENT.fullmatch(statement)
        if match and _is_one_word(match[3]):
            _assign(scope, match[1], match[3], append=bool(match[2]))
        elif statement:
            yield from _commands_on(statement, number, scope)
        scope.depth = max(0, scope.depth - len(CLOSES.findall(line)))


def _logical_lines(text: str, scope: Scope) -> Iterator[tuple[int, str]]:
    """Yield (number, line) with continuation lines and arrays joined. Here-documents become variables."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if line.lstrip().startswith("#"):
            continue
        whole = _joined(line, lines)
        here = HERE.search(whole)
        if here:
            body = []
            for _, inner in lines:
                if inner.strip() == here[2]:
                    break
                body.append(inner)
            target = READ.search(whole)
            if target:
                joined = re.sub(r"\\\n", " ", "\n".join(body))
                scope.variables[target[1] or target[2]] = joined if here[1] else expand(joined, scope)
                continue
            whole = whole[: here.start()]
        yield number, whole.rstrip().removesuffix("\\")


def _joined(line: str, lines: Iterator[tuple[int, str]]) -> str:
    """Return a line with its continuation lines. A comment ends a command: bash does not continue comments."""
    last = line
    while not last.lstrip().startswith("#") and (line.endswith("\\") or _is_open(line)):
        _, last = next(lines, (0, ""))
        line = f"{line[:-1]} {last.rstrip()}" if line.endswith("\\") else f"{line}\n{last}"
        if not last:
            break
    return line


def _is_open(line: str) -> bool:
    """Return whether an array or a quoted text continues on the next line."""
    code = re.sub(r"\\.", "", line)
    if re.match(rf"\s*(?:\w+\s+)*{NAME}\+?=\(", code) and code.count("(") > code.count(")"):
        return True
    return code.count('"') % 2 == 1 and "'" not in code


def _is_one_word(value: str) -> bool:
    """Return whether the text after NAME= is only a value, and not followed by a command."""
    value = value.strip()
    if not value or value.startswith(("(", "$(")):
        return True
    try:
        return len(shlex.split(value, comments=True)) <= 1
    except ValueError:
        return False


def _assign(scope: Scope, name: str, value: str, *, append: bool) -> None:
    value = value.strip()
    is_array = value.startswith("(")
    text: str | None = expand(value[1 : value.rfind(")")] if is_array else value, scope)
    try:
        words = shlex.split(text or "", comments=True)
    except ValueError:
        words = [text or ""]
    text = shlex.join(words) if is_array or len(words) > 1 else (words[0] if words else "")
    if append:
        text = f"{scope.variables.get(name) or ''} {text}"
    is_certain = not scope.depth or scope.variables.get(name) == text
    scope.variables[name] = text if is_certain else None


def _commands_on(statement: str, line: int, scope: Scope) -> Iterator[Command]:
    """Yield the commands of one line, without the redirections."""
    text = REDIRECTION.sub(lambda match: match[0] if match[0][0] in "\"'" else " ", expand(statement, scope))
    parts: list[list[str]] = [[]]
    for word in _words(text):
        if set(word) <= set(";&|") or word in ("do", "then", "else", "{", "}"):
            parts.append([])
        else:
            parts[-1].append(word)
    exported = {name: value for name, value in scope.variables.items() if value is not None}
    for part in parts:
        if part and part[0] in ("export", "readonly", "local", "declare"):
            for assigned in filter(None, map(ASSIGNMENT.fullmatch, part[1:])):
                _assign(scope, assigned[1], shlex.quote(assigned[3]), append=False)
            continue
        environment = dict(exported)
        while part and (match := ASSIGNMENT.fullmatch(part[0])) and "--" not in match[1]:
            environment[match[1]] = match[3]
            part = part[1:]
        if part:
            yield Command(tuple(part), environment, line)


def _words(text: str) -> list[str]:
    """Return the words of a line. Separators of commands are words of their kind only."""
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        return list(lexer)
    except ValueError:  # quotes that do not match
        return text.split()


def expand(text: str, scope: Scope) -> str:
    """Replace variables and integer arithmetic outside of single quotes."""
    text = re.sub(rf'"(\$\{{{NAME}\[@\]\}})"', r"\1", text)  # an array in quotes is several words
    parts = re.split(r"('[^']*')", text)
    return "".join(part if part.startswith("'") else _replaced(part, scope) for part in parts)


def _replaced(text: str, scope: Scope) -> str:
    def value_of(match: re.Match[str]) -> str:
        value = scope.variables.get(match[1] or match[2])
        default = match[3].strip("\"'") if match[3] is not None else None
        return value if value is not None else (default if default is not None else match[0])

    def in_arithmetic(match: re.Match[str]) -> str:
        return scope.variables.get(match[0]) or match[0]

    text = REFERENCE.sub(value_of, text)
    text = re.sub(r"\$\(\(.*?\)\)", lambda match: re.sub(NAME, in_arithmetic, match[0]), text)
    return EXPRESSION.sub(lambda match: _calculated(match[0], match[1] or match[2] or match[3]), text)


def _calculated(text: str, expression: str) -> str:
    """Return the value of an integer expression, or `text` if it is not one."""
    try:
        return str(_value_of(ast.parse(expression.replace("\\", "").strip(), mode="eval").body))
    except (SyntaxError, ArithmeticError, ValueError):
        return text


def _value_of(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value_of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value_of(node.left), _value_of(node.right))
    raise ValueError("not integer arithmetic")
