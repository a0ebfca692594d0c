# SPDX-License-Identifier: Apache-2.0
"""How a rule gets what it does not say itself: from its section, then from the spec; an action nobody gives is Block.

Each rule carries the place it was written at, down to the engine and back in every alert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.policy.documents import field_name
from hauberk.policy.rules import Action, Origin, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.policy.documents import FieldPath
    from hauberk.policy.models import Policy


def rule(policy: Policy, path: FieldPath, levels: tuple[Any, ...], **parts: Any) -> Rule:  # noqa: ANN401
    """Make a rule of what stands at a path; what ``parts`` does not say of it is inherited from the ``levels``."""
    line, column = policy.document.place(path)
    own = {
        "action": Action(inherited(levels, "action", Action.BLOCK)),
        "severity": inherited(levels, "severity", 0),
        "tags": tuple(inherited(levels, "tags", ())),
        "message": inherited(levels, "message", ""),
    }
    origin = Origin(policy.name, field_name(path), policy.document.file, line, column)
    return Rule(origin=origin, **own | parts)


def inherited(levels: Iterable[Any], name: str, default: Any) -> Any:  # noqa: ANN401 - the attribute decides the type
    """Give what the first of the levels says that says anything."""
    values = (getattr(level, name, None) for level in levels)
    return next((value for value in values if value is not None), default)
