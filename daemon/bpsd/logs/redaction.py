"""What no log tells: secrets, by the name of their field or by their look; and no text so long that it drowns the rest.

A run's token is no secret: it names the run. What opens a door is one.
"""

from __future__ import annotations

__all__ = ["REDACTED", "redact", "redact_text"]

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

REDACTED = "[redacted]"

MAX_TEXT_CHARS = 8192
MAX_TRACEBACK_CHARS = 65_536
MAX_DEPTH = 6
MAX_ITEMS = 100

_SECRET_KEY = re.compile(
    r"(^|[_.-])(secrets?|passw(or)?ds?|passwd|passphrase|authorization|cookie|credentials?|bearer"
    r"|(private|secret|access|api)[_-]?keys?|(access|refresh|auth|id|sci|idds)[_-]?tokens?)($|[_.-])",
    re.IGNORECASE,
)

_SECRET_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = (
    # PEM (RFC 7468); to the end of the text where the closing line was cut off
    (re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*-----|\Z)", re.DOTALL), REDACTED),
    # JSON Web Tokens, SciTokens among them (RFC 7519): base64url of '{"' begins with eyJ
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), REDACTED),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/-]{16,}=*", re.IGNORECASE), rf"\1 {REDACTED}"),
    (
        re.compile(
            r"((?:secret|passw(?:or)?d|passphrase|api_?key|authorization|access_token|token_secret)['\"]?\s*[=:]\s*)"
            r"['\"]?(?:(?:bearer|basic)\s+)?[^\s'\"&,;]+",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    # user:password@ in a URL (RFC 3986, section 3.2.1)
    (re.compile(r"(://[^\s/:@]*:)[^\s/@]+(@)"), rf"\1{REDACTED}\2"),
)

_CONTROL = {code: chr(code).encode("unicode_escape").decode("ascii") for code in (*range(32), *range(127, 160))}
del _CONTROL[ord("\t")]
_CONTROL_BUT_NEWLINE = {code: text for code, text in _CONTROL.items() if code != ord("\n")}
_MULTI_LINE_KEYS = ("exception", "stack")


def redact(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make an event fit to be told (a structlog processor)."""
    for key, value in event.items():
        if key in _MULTI_LINE_KEYS and isinstance(value, str):
            event[key] = redact_text(value, limit=MAX_TRACEBACK_CHARS, lines=True)
        else:
            event[key] = _value(key, value, MAX_DEPTH)
    return event


def redact_text(text: str, *, limit: int = MAX_TEXT_CHARS, lines: bool = False) -> str:
    """Take secrets and control characters out of a text, and cut it.

    Control characters would let what a WMS or a client says write on somebody's terminal; ``lines`` keeps newlines.
    """
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    for pattern, replacement in _SECRET_TEXTS:
        text = pattern.sub(replacement, text)
    return text.translate(_CONTROL_BUT_NEWLINE if lines else _CONTROL)


def _value(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and value and _SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        kept = list(value.items())[:MAX_ITEMS]
        return {redact_text(str(k)): _value(k, v, depth - 1) for k, v in kept} | _rest(len(value))
    if isinstance(value, list | tuple | set | frozenset):
        kept = list(value)[:MAX_ITEMS]
        return [_value(None, item, depth - 1) for item in kept] + list(_rest(len(value)))
    return redact_text(_repr(value))


def _rest(count: int) -> dict[str, str]:
    return {f"... ({count} in all)": ""} if count > MAX_ITEMS else {}


def _repr(value: object) -> str:
    try:
        return str(value) if isinstance(value, BaseException) else repr(value)
    except Exception as error:  # noqa: BLE001 - somebody's __repr__: what it does wrong is no reason to lose the line
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
