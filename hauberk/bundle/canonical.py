# SPDX-License-Identifier: Apache-2.0
"""Strict JSON, and the one byte form of it that gets signed.

Two parsers that read the same bytes differently are how a signed document comes to mean two things. So the reader takes
no duplicate keys, no NaN or infinity, no fractions, no lone surrogates, nothing but UTF-8; and where bytes
are signed, :func:`require_canonical` demands that writing the value again gives the very same bytes: a document has one
spelling, hence one digest. Sizes are bounded before the first byte is looked at.

The form is that of RFC 8785 for the values used here (strings, integers, lists and objects with ASCII keys), plus
one line feed at the end, so that the file is a text file for diff and git.
"""

from __future__ import annotations

import json
from typing import NoReturn

from hauberk.bundle.errors import MalformedBundleError, quote

MAXIMUM_INTEGER_DIGITS = 19


def encode(value: object) -> bytes:
    """Write a value in canonical form: UTF-8, keys sorted, no white space, one line feed at the end.

    Raises ``MalformedBundleError`` for text that UTF-8 cannot express (lone surrogates) and for NaN or infinity.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        return text.encode() + b"\n"
    except UnicodeEncodeError as error:
        found = quote(error.object[error.start : error.end])
        message = f"found the lone surrogate {found}, expected text that UTF-8 can express: correct the policy's text"
        raise MalformedBundleError(message) from error
    except ValueError as error:
        message = f"found a number that JSON has no form for ({error}), expected integers: correct the value"
        raise MalformedBundleError(message) from error


def load(data: bytes, *, maximum_bytes: int, what: str) -> object:
    """Read JSON strictly. ``what`` names the document in errors; ``maximum_bytes`` bounds it before parsing.

    Raises ``MalformedBundleError``.
    """
    if len(data) > maximum_bytes:
        _refuse(
            what,
            f"found {len(data)} bytes or more",
            f"at most {maximum_bytes}",
            "split it up, or remove what is not needed",
        )
    if not data:
        _refuse(what, "found an empty file", "a JSON object", "check the path and whether writing it succeeded")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(what, f"found bytes at offset {error.start} that are not UTF-8", "UTF-8", "convert the file", error)
    try:
        return json.loads(
            text,
            object_pairs_hook=lambda pairs: _unique(pairs, what),
            parse_constant=lambda word: _refuse(what, f"found {word}", "integers only", "correct the value"),
            parse_float=lambda word: _refuse(what, f"found {quote(word)}", "integers only", "correct the value"),
            parse_int=lambda word: _integer(word, what),
        )
    except json.JSONDecodeError as error:
        found = f"found no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        _refuse(what, found, "one JSON object", "check that this is the right file", error)
    except RecursionError as error:
        _refuse(
            what, "found JSON nested too deeply to read", "a few levels", "check that this is the right file", error
        )


def require_canonical(data: bytes, value: object, what: str) -> None:
    """Refuse ``data`` unless it is the canonical form of ``value``, which was read from it."""
    expected = encode(value)
    if data == expected:
        return
    offset = next(
        (i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), min(len(data), len(expected))
    )
    _refuse(
        what,
        f"found bytes that differ from the canonical form at offset {offset} ({quote(data[offset : offset + 16])})",
        f"{quote(expected[offset : offset + 16])} there (sorted keys, no white space, one line feed at the end)",
        "use the file as `hauberk bundle build` wrote it",
    )


def _unique(pairs: list[tuple[str, object]], what: str) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        _refuse(what, f"found the key {quote(twice)} twice in one object", "each key once", "remove one of the two")
    return value


def _integer(word: str, what: str) -> int:
    if len(word) > MAXIMUM_INTEGER_DIGITS:
        _refuse(
            what, f"found an integer of {len(word)} digits", f"at most {MAXIMUM_INTEGER_DIGITS}", "correct the value"
        )
    if word == "-0":
        _refuse(what, "found -0", "0", "correct the value")
    return int(word)


def _refuse(what: str, found: str, expected: str, action: str, cause: Exception | None = None) -> NoReturn:
    message = f"{what}: {found}, expected {expected}: {action}"
    raise MalformedBundleError(message) from cause
