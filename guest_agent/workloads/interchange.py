# SPDX-License-Identifier: Apache-2.0
"""The normal form of rules as JSON, between the agent and its short-lived children, and in its records of workloads.

Reading back is strict: a record that is not what was written raises ValueError, and its reader then does without.
"""

from __future__ import annotations

from typing import Final

from hauberk.policy.rules import Action, ObjectKind, Operation, Origin, Rule, RuleSet, Section, Verdict

Json = dict[str, object] | list[object] | str | int | float | bool | None

_FIELDS: Final = 14
_ORIGIN_FIELDS: Final = 5


def rule_set_to_json(rule_set: RuleSet) -> dict[str, object]:
    """Give a rule set as JSON values."""
    return {"posture": int(rule_set.posture), "rules": [rule_to_json(rule) for rule in rule_set.rules]}


def rule_set_from_json(value: object) -> RuleSet:
    """Read back what :func:`rule_set_to_json` gave. Raises ValueError."""
    if not isinstance(value, dict) or not isinstance(value.get("rules"), list) or "posture" not in value:
        message = "found no rule set, expected an object with posture and rules"
        raise ValueError(message)
    return RuleSet(tuple(rule_from_json(rule) for rule in value["rules"]), Verdict(value["posture"]))


def rule_to_json(rule: Rule) -> list[object]:
    """Give one rule as a JSON array, in the order of its fields."""
    origin = rule.origin
    return [
        rule.section.value,
        rule.kind.value,
        rule.value,
        rule.action.value,
        [origin.policy, origin.field, origin.file, origin.line, origin.column],
        rule.recursive,
        rule.read_only,
        rule.owner_only,
        list(rule.sources),
        rule.severity,
        list(rule.tags),
        rule.message,
        [operation.value for operation in rule.operations],
        rule.implied,
    ]


def rule_from_json(value: object) -> Rule:
    """Read back what :func:`rule_to_json` gave. Raises ValueError."""
    if not isinstance(value, list) or len(value) != _FIELDS:
        message = f"found no rule, expected an array of {_FIELDS} fields"
        raise ValueError(message)
    section, kind, path, action, origin, recursive, read_only, owner_only = value[:8]
    sources, severity, tags, text, operations, implied = value[8:]
    flags = (recursive, read_only, owner_only, implied)
    lists = (origin, sources, tags, operations)
    if not (
        all(isinstance(flag, bool) for flag in flags)
        and all(isinstance(part, list) for part in lists)
        and len(origin) == _ORIGIN_FIELDS
        and all(isinstance(number, int) and not isinstance(number, bool) for number in (severity, *origin[3:]))
    ):
        message = "a rule's fields have other types than expected"
        raise ValueError(message)
    policy, field, file, line, column = origin
    return Rule(
        section=Section(section),
        kind=ObjectKind(kind),
        value=_text(path),
        action=Action(action),
        origin=Origin(_text(policy), _text(field), _text(file), line, column),
        recursive=recursive,
        read_only=read_only,
        owner_only=owner_only,
        sources=tuple(_text(source) for source in sources),
        severity=severity,
        tags=tuple(_text(tag) for tag in tags),
        message=_text(text),
        operations=tuple(Operation(operation) for operation in operations),
        implied=implied,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"found {type(value).__name__}, expected a string"
        raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
    return value
