# SPDX-License-Identifier: Apache-2.0
"""What every target holds its subject to, whatever the bytes.

A subject may refuse, with an error of its own family; anything else that it raises is a finding. What it says of
hostile bytes must neither repaint a terminal nor carry them into a log: each line is printable, and holds no more of
the input in one piece than a short quotation.
"""

from __future__ import annotations

import json
from base64 import b64decode
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from hauberk.errors import HauberkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")
LONGEST_QUOTATION = 256
"""Characters. Texts quote 40 to 200; this leaves room for what is quoted beside it."""
LONGEST_LINE = 8192
"""Characters."""


class FindingError(AssertionError):
    """The subject did what it must not do."""


def refuses_or(
    action: Callable[[], _T], data: bytes, family: tuple[type[Exception], ...] = (HauberkError,)
) -> _T | None:
    """Give the action's result, or None if it refused as it may; the refusal's text is checked."""
    try:
        return action()
    except family as error:
        check_text(str(error), data)
        return None


def check_text(text: str, data: bytes, longest: int = LONGEST_QUOTATION) -> None:
    """Check what is said of an input. Raises ``FindingError``."""
    if not text.strip():
        message = "a refusal without words"
        raise FindingError(message)
    given = data.decode("utf-8", "replace")
    for line in text.split("\n"):
        if not line.isprintable():
            message = f"a text that is not printable: {line!r}"
            raise FindingError(message)
        if len(line) > LONGEST_LINE:
            message = f"a line of {len(line)} characters: {line[:200]!r}"
            raise FindingError(message)
        for start in range(len(line) - longest):
            if line[start : start + longest] in given:
                message = f"a text that holds {longest} characters of the input: {line!r}"
                raise FindingError(message)


def ensure(condition: object, what: str) -> None:
    """Raise ``FindingError`` unless the condition holds; unlike ``assert``, always."""
    if not condition:
        raise FindingError(what)


def strings_of(value: object) -> Iterator[str]:
    """Give all strings in a JSON value, the names of members included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from strings_of(item)


def possible_signatures(data: bytes) -> Iterator[bytes]:
    """Give everything in a file that could be taken for a signature, read as leniently as Python can.

    Whoever accepted the file must have found a valid one among these; so an acceptance can be judged without the code
    that accepted.
    """
    yield data
    texts = [data.decode("latin-1")]
    with suppress(ValueError, RecursionError):  # if it is no JSON, there are no strings in it
        texts.extend(strings_of(json.loads(data)))
    for text in texts:
        for candidate in (text, text.replace("-", "+").replace("_", "/")):
            try:
                yield b64decode(candidate + "==")
            except ValueError:
                continue
