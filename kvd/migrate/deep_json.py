"""JSON of any depth: a tree of thousands of directories in each other is as deep in JSON twice.

The parser of the standard library ends at the depth of Python's stack. What is deeper is read again
by one without recursion, some forty times as slow.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

_TOKEN = re.compile(r'[ \t\n\r]*([{}\[\]:,]|"(?:[^"\\]|\\.)*"|[^\s{}\[\]:,"]+)', re.DOTALL)
_BLANK = re.compile(r"[ \t\n\r]*")


def loads(text: bytes | str) -> Any:
    """Return the content of a text.

    Raises:
        ValueError: it is no JSON.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        return json.loads(text)
    except RecursionError:
        return _Parser(text).parse()


class _Parser:
    """Reads piece by piece; the containers that are open are on a stack."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._open: list[dict[str, Any] | list[Any]] = []
        self._names: list[str] = []

    def parse(self) -> Any:
        """Return the content of the text."""
        value = self._begin(self._piece())
        while self._open:
            top = self._open[-1]
            piece = self._piece()
            if piece == ("}" if isinstance(top, dict) else "]"):
                self._open.pop()
                continue
            if top:
                if piece != ",":
                    self._refuse(piece)
                piece = self._piece()
            if isinstance(top, dict):
                name = self._name(piece)
                piece = self._piece()
                top[name] = self._begin(piece)
            else:
                top.append(self._begin(piece))
        if _BLANK.fullmatch(self._text, self._at) is None:
            self._refuse(self._text[self._at : self._at + 10])
        return value

    def _piece(self) -> str:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            self._refuse(self._text[self._at : self._at + 10])
        self._at = match.end()
        return match[1]

    def _name(self, piece: str) -> str:
        if piece[0] != '"' or self._piece() != ":":
            self._refuse(piece)
        return str(json.loads(piece))

    def _begin(self, piece: str) -> Any:
        """Return the value that a piece begins; a container is filled by what follows."""
        if piece in "{[":
            made: dict[str, Any] | list[Any] = {} if piece == "{" else []
            self._open.append(made)
            return made
        return json.loads(piece)

    def _refuse(self, piece: str) -> NoReturn:
        raise ValueError(f"{piece!r} at character {self._at}")
