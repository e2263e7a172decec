# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB's script language, parsed: words with quotes and variables, lists, if, while, for, functions, blocks.

After GRUB's manual, "Writing full configuration files directly", and its grammar (grub-core/script/yylex.l, parser.y).
What a command does is `swtdx.attest.grub_boot`'s.  A block (of a menu entry) keeps its source, because GRUB measures it
as a part of the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MAXIMUM_SCRIPT = 4 << 20
_MAXIMUM_DEPTH = 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?#*@]")
_KEYWORD = re.compile(r"[a-z]+(?=[\s;|&<>{}]|\Z)")
_ENDS = frozenset("\n;|&<>")
_RESERVED = frozenset({"if", "then", "elif", "else", "fi", "while", "until", "for", "in", "do", "done", "function"})
_ESCAPED_IN_DOUBLE = '$"\\'


class ScriptError(ValueError):
    """The script cannot be parsed; the text says where."""


@dataclass(frozen=True)
class Piece:
    """A part of a word: ``text``, or the value of the variable with that name."""

    text: str
    variable: bool = False
    quoted: bool = False


@dataclass(frozen=True)
class Word:
    """One argument as it is written."""

    pieces: tuple[Piece, ...]

    @property
    def plain(self) -> str | None:
        """The word if it is one unquoted text."""
        if len(self.pieces) == 1 and not self.pieces[0].variable and not self.pieces[0].quoted:
            return self.pieces[0].text
        return None


@dataclass(frozen=True)
class Command:
    """A command; ``block`` is the source between the braces behind it."""

    words: tuple[Word, ...]
    block: str | None = None


@dataclass(frozen=True)
class If:
    """Conditions with what they guard, and what is left."""

    branches: tuple[tuple[Script, Script], ...]
    otherwise: Script


@dataclass(frozen=True)
class Loop:
    """``while`` and ``until``."""

    condition: Script
    body: Script
    until: bool


@dataclass(frozen=True)
class For:
    """``for name in words``."""

    name: str
    words: tuple[Word, ...]
    body: Script


@dataclass(frozen=True)
class Function:
    """A definition."""

    name: str
    body: Script


Statement = Command | If | Loop | For | Function
Script = tuple[Statement, ...]


def parse_script(source: str) -> Script:
    """Parse a configuration. Raises `ScriptError`.

    >>> parse_script("set a='b c' # text")[0].words[1].pieces
    (Piece(text='a=', variable=False, quoted=False), Piece(text='b c', variable=False, quoted=True))
    """
    if len(source) > MAXIMUM_SCRIPT:
        raise ScriptError(f"it is longer than {MAXIMUM_SCRIPT >> 20} MiB")
    return _Parser(source).whole()


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.depth = 0

    def whole(self) -> Script:
        found = self.statements(lambda: False)
        if self.at < len(self.source):
            raise self.error(f"{self.source[self.at]!r} is not expected")
        return found

    def error(self, text: str) -> ScriptError:
        return ScriptError(f"line {self.source.count(chr(10), 0, self.at) + 1}: {text}")

    def statements(self, ends: Callable[[], bool]) -> Script:
        """Statements up to the end, or where ``ends`` is true."""
        self.depth += 1
        if self.depth > _MAXIMUM_DEPTH:
            raise self.error("it is nested too deeply")
        found: list[Statement] = []
        while True:
            self.skip_ends()
            if self.at >= len(self.source) or ends():
                break
            if self.source[self.at] in _ENDS:
                raise self.error(f"{self.source[self.at]!r} is not expected")
            found.append(self.statement())
        self.depth -= 1
        return tuple(found)

    def statement(self) -> Statement:
        start = self.at
        word = self.word()
        keyword = word.plain
        if keyword == "if":
            return self.condition()
        if keyword in ("while", "until"):
            condition = self.list_until("do")
            return Loop(condition, self.list_until("done"), keyword == "until")
        if keyword == "for":
            return self.every()
        if keyword == "function":
            self.skip_blanks()
            name = self.word().plain
            self.skip_blanks()
            if name is None or self.peek() != "{":
                raise self.error("a function has no name or no body")
            return Function(name, parse_inner(self.block(), self.depth))
        if keyword in _RESERVED:
            self.at = start
            raise self.error(f"{keyword!r} is not expected")
        return self.command(word)

    def command(self, first: Word) -> Command:
        words, block = [first], None
        while True:
            self.skip_blanks()
            if self.at >= len(self.source) or self.source[self.at] in _ENDS or self.closes():
                break
            if self.opens():
                block = self.block()
                break
            words.append(self.word())
        return Command(tuple(words), block)

    def condition(self) -> If:
        branches = []
        while True:
            condition = self.list_until("then")
            body, keyword = self.list_before("elif", "else", "fi")
            branches.append((condition, body))
            if keyword != "elif":
                break
        return If(tuple(branches), self.list_until("fi") if keyword == "else" else ())

    def every(self) -> For:
        self.skip_blanks()
        name = self.word().plain
        self.skip_blanks()
        if name is None or self.word().plain != "in":
            raise self.error("a for has no name or no 'in'")
        words = self.command(Word(())).words[1:]
        self.skip_ends()
        if self.at >= len(self.source) or self.word().plain != "do":
            raise self.error("a for has no 'do'")
        return For(name, words, self.list_until("done"))

    def list_until(self, keyword: str) -> Script:
        return self.list_before(keyword)[0]

    def list_before(self, *keywords: str) -> tuple[Script, str]:
        """Statements up to one of the keywords, which is taken, and which it was."""
        found = self.statements(lambda: self.next_word() in keywords)
        keyword = self.next_word()
        if keyword not in keywords:
            raise self.error(f"{' or '.join(keywords)} is missing")
        self.at += len(keyword)
        return found, keyword

    def next_word(self) -> str:
        found = _KEYWORD.match(self.source, self.at)
        return found[0] if found else ""

    def peek(self) -> str:
        return self.source[self.at : self.at + 1]

    def opens(self) -> bool:
        """Whether a block begins: a brace that stands alone."""
        return self.peek() == "{" and self.source[self.at + 1 : self.at + 2] in ("", " ", "\t", "\n", ";")

    def closes(self) -> bool:
        return self.peek() == "}" and self.source[self.at + 1 : self.at + 2] in ("", " ", "\t", "\n", ";")

    def block(self) -> str:
        """The source between two braces."""
        start = self.at + 1
        inner = _Parser(self.source)
        inner.at, inner.depth = start, self.depth
        inner.statements(inner.closes)
        if inner.peek() != "}":
            raise self.error("a block has no end")
        self.at = inner.at + 1
        return self.source[start : inner.at]

    def skip_blanks(self) -> None:
        while self.at < len(self.source):
            if self.source.startswith("\\\n", self.at):
                self.at += 2
            elif self.source[self.at] in " \t\r":
                self.at += 1
            elif self.source[self.at] == "#":
                end = self.source.find("\n", self.at)
                self.at = len(self.source) if end < 0 else end
            else:
                return

    def skip_ends(self) -> None:
        while True:
            self.skip_blanks()
            if self.peek() not in ("\n", ";"):
                return
            self.at += 1

    def word(self) -> Word:
        pieces: list[Piece] = []
        text = ""

        def flush() -> None:
            nonlocal text
            if text:
                pieces.append(Piece(text))
            text = ""

        while self.at < len(self.source):
            character = self.source[self.at]
            if character in " \t\r" or character in _ENDS:
                break
            if character == "\\":
                if self.source.startswith("\\\n", self.at):
                    self.at += 2
                    continue
                flush()
                pieces.append(Piece(self.source[self.at + 1 : self.at + 2], quoted=True))
                self.at += 2
            elif character == "'":
                flush()
                pieces.append(Piece(self.until("'"), quoted=True))
            elif character == '"':
                flush()
                pieces += self.double()
            elif character == "$" and (name := self.variable()):
                flush()
                pieces.append(Piece(name, variable=True))
            else:
                text += character
                self.at += 1
        flush()
        return Word(tuple(pieces))

    def until(self, quote: str) -> str:
        end = self.source.find(quote, self.at + 1)
        if end < 0:
            raise self.error(f"a {quote} has no end")
        found = self.source[self.at + 1 : end]
        self.at = end + 1
        return found

    def double(self) -> list[Piece]:
        start, found, text = self.at, [], ""
        self.at += 1
        while self.at < len(self.source) and self.source[self.at] != '"':
            character = self.source[self.at]
            if character == "\\" and self.source[self.at + 1 : self.at + 2] in _ESCAPED_IN_DOUBLE:
                text += self.source[self.at + 1 : self.at + 2]
                self.at += 2
            elif self.source.startswith("\\\n", self.at):
                self.at += 2
            elif character == "$" and (name := self.variable()):
                found += [Piece(text, quoted=True), Piece(name, variable=True, quoted=True)]
                text = ""
            else:
                text += character
                self.at += 1
        if self.at >= len(self.source):
            self.at = start
            raise self.error('a " has no end')
        self.at += 1
        return [*found, Piece(text, quoted=True)]

    def variable(self) -> str:
        """The name behind a dollar, which is taken with it; empty if there is none."""
        braced = self.source.startswith("${", self.at)
        found = _NAME.match(self.source, self.at + 1 + braced)
        if found is None or (braced and self.source[found.end() : found.end() + 1] != "}"):
            return ""
        self.at = found.end() + braced
        return found[0]


def parse_inner(source: str, depth: int = 0) -> Script:
    """Parse what a block holds. Raises `ScriptError`."""
    parser = _Parser(source)
    parser.depth = depth
    return parser.whole()
