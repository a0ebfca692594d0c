# SPDX-License-Identifier: Apache-2.0
"""What all models of policies share: strictness, the way to refuse, and the attributes that rules inherit.

pydantic's messages speak to programmers, so validators here refuse with the parts of a sentence (found, expected,
what to do), which :mod:`hauberk.policy.models.messages` completes with the place.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hauberk.policy.documents import printable, type_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.policy.documents import FieldPath

_LONGEST_WORD = 64
NULL_IS_ABSENT_MARK = "null is absent"
"""Key in a field's JSON schema: null may be written there."""


def refuse(
    expected: str, advice: str, found: str = "", below: FieldPath = (), near: tuple[str, Iterable[str]] = ("", ())
) -> NoReturn:
    """Refuse the value being validated, or what stands in it at ``below``. Empty ``found``: the value itself.

    ``near`` is a word and what may have been meant by it, which replaces the advice where something is near. It is
    looked for when the problem is told, as that takes long and not all problems are.
    """
    context = {"found": found, "expected": expected, "advice": advice, "below": below, "near": near}
    raise PydanticCustomError("hauberk", "{expected}", context)  # noqa: EM101


def shown(value: object) -> str:
    """Show a value of the document, shortened to what fits into a line."""
    if isinstance(value, str):
        return f'"{printable(json.dumps(value, ensure_ascii=False)[1:-1])}"'
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if value == []:
        return "an empty list"
    return type_name(value)


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Give ``Did you mean …?`` for the choice nearest to a word; empty if none is near."""
    if len(word) > _LONGEST_WORD:  # comparing takes time and memory with the length
        return ""
    choices = tuple(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if not close:
        folded = tuple(choice.casefold() for choice in choices)
        near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
        close = [choices[folded.index(near[0])]] if near else []
    return f"Did you mean {close[0]!r}?" if close else ""


def _not_null(value: object) -> object:
    if value is None:
        refuse("a value", "Write one, or remove the field", "null")
    return value


NOT_NULL = BeforeValidator(_not_null)
"""For fields that may be absent (None in the model) but not written as null, which other readers take in different
ways.
"""

NULL_IS_ABSENT = Field(json_schema_extra={NULL_IS_ABSENT_MARK: True})
"""For the few fields where published policies write null for "nothing said". Told as a warning."""


class Strict(BaseModel):
    """A part of a policy: no coercion, no unknown field, no change afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)


Severity = Annotated[int, Field(ge=1, le=10)]
Action = Literal["Allow", "Audit", "Block"]


class Notes(Strict):
    """What each level may say about its alerts, and the next one inherits. ``None``: not said here."""

    severity: Annotated[Severity | None, NOT_NULL] = None
    tags: Annotated[list[str] | None, NOT_NULL] = None
    message: Annotated[str | None, NOT_NULL] = None


class Attributes(Notes):
    """What each level may say, action included."""

    action: Annotated[Action | None, NOT_NULL] = None
