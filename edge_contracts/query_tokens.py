"""Words of a query (IoT Hub's query language: `query.py`).

- Keywords are names here: `tags.from` is a path, and where a name ends the parser knows what it may be.
- A name is a letter, `_` or `$`, then letters, digits, `_` and `$`. Any other name stands in `[[…]]`.

>>> [token.kind for token in tokenize_query("tags.[[a b]] >= 1.5")]
['name', '.', 'bracketed', '>=', 'number', 'end']
"""

from __future__ import annotations

import re

from edge_contracts.route_tokens import Token

_ESCAPE = r"\\(?:[\"'\\]|u[0-9a-fA-F]{4})"
_STRING = rf"'(?:{_ESCAPE}|[^'\\])*'|\"(?:{_ESCAPE}|[^\"\\])*\""
# In this order: what could be read two ways is read as the first.
_TABLE: tuple[tuple[str, str], ...] = (
    ("space", r"\s+"),
    ("bracketed", r"\[\[[^\[\]]+\]\]"),
    ("string", _STRING),
    ("unterminated string", r"['\"]"),
    ("hex", r"0[xX][0-9a-fA-F]+(?![\w$])"),
    ("number", r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w$])"),
    ("name", r"[^\W\d][\w$]*|\$[\w$]+"),
    ("symbol", r"<=|>=|<>|!=|[=<>()+\-*/%,.\[\]]"),
    ("unknown", r"[0-9][\w$]*|."),
)
_PATTERN = re.compile("|".join(f"({pattern})" for _, pattern in _TABLE), re.DOTALL)


def tokenize_query(text: str) -> tuple[Token, ...]:
    """The tokens of a query without white space, closed by one of kind `end`; a symbol is a kind of its own."""
    tokens = [_token(match) for match in _PATTERN.finditer(text) if match.lastindex != 1]
    return (*tokens, Token("end", "", len(text)))


def _token(match: re.Match[str]) -> Token:
    assert match.lastindex is not None
    kind = _TABLE[match.lastindex - 1][0]
    return Token(match[0] if kind == "symbol" else kind, match[0], match.start())
