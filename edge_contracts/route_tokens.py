"""Words of a route.

Rules (IoT Edge: `RouteLexer.g4`, `Condition.g4`):
- The longest token wins, and of equally long ones the first in the table.
- A name may hold anything but `( ) < > @ , ; : \\ " / [ ] ? = { }` and white space. So `a-1`, `a!` and `'a'||'b'` are
  one name each: operators need spaces around them, except `=`, `<`, `>`, `/` and `,`.
- `/* … */` is a comment; a `/*` that is never closed is a slash and a star.

>>> [token.kind for token in tokenize("$upstream /* to the hub */ a = 'x'")]
['system-property', 'name', '=', 'string', 'end']
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPE = r"\\(?:[\"'\\]|u[0-9a-fA-F]{4})"
_SINGLE = rf"'(?:{_ESCAPE}|[^'\\])*"
_DOUBLE = rf'"(?:{_ESCAPE}|[^"\\])*'
_EXPONENT = r"[Ee][+-]?[0-9]+"

_TABLE: tuple[tuple[str, str], ...] = (
    ("SELECT", r"(?i:select)"),
    ("FROM", r"(?i:from)"),
    ("WHERE", r"(?i:where)"),
    ("INTO", r"(?i:into)"),
    ("string", rf"{_DOUBLE}\"|{_SINGLE}'"),
    ("unterminated string", rf"{_DOUBLE}|{_SINGLE}"),
    ("integer", r"-?[0-9]+"),
    ("hex", r"0[Xx][0-9a-fA-F]+"),
    ("real", rf"-?[0-9]*\.[0-9]+(?:{_EXPONENT})?|-?[0-9]*{_EXPONENT}"),
    # Only the lower-case spellings: TRUE is the name of a property.
    ("true", "true"),
    ("false", "false"),
    ("null", "null"),
    ("undefined", "undefined"),
    *((symbol, re.escape(symbol)) for symbol in ("(", ")", ",", "+", "-", "*", "/", "%")),
    ("AND", r"(?i:and)"),
    ("OR", r"(?i:or)"),
    ("NOT", r"(?i:not)"),
    *(
        (symbol, re.escape(symbol))
        for symbol in ("=", "!=", "<>", "<=", ">=", ">", "<", "||", "??", "{", "}")
    ),
    ("system-property", r"\$[^()<>@,;:\\\"/?={} \t\n\r]+"),
    ("name", r"[^()<>@,;:\\\"/\[\]?={} \t\n\r]+"),
    ("space", r"[ \t\r\n]+"),
    ("comment", r"/\*(?s:.*?)\*/"),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _TABLE)
_SKIPPED = frozenset({"space", "comment"})


@dataclass(frozen=True, slots=True)
class Token:
    """A word, where it begins and where it ends; `kind` is `end` behind the last one, `unknown` for a stray character."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def shown(self) -> str:
        """As an error message names it."""
        return "the end of the route" if self.kind == "end" else repr(self.text)


def tokenize(text: str) -> tuple[Token, ...]:
    """The tokens of a route without spaces and comments, closed by one of kind `end`."""
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        token = _longest(text, position)
        if token.kind not in _SKIPPED:
            tokens.append(token)
        position = token.end
    return (*tokens, Token("end", "", len(text)))


def _longest(text: str, position: int) -> Token:
    best = Token("unknown", "", position)
    for kind, pattern in _PATTERNS:
        match = pattern.match(text, position)
        if match is not None and len(match[0]) > len(best.text):
            best = Token(kind, match[0], position)
    return best if best.text else Token("unknown", text[position], position)
