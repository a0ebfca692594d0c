# SPDX-License-Identifier: Apache-2.0
"""Rules and answers as plain values for programs, and as lines for people.

Nothing is left out that says something, and nothing is said in another way than the policy says it: fields have the
names that documents give them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.errors import visible
from hauberk.policy.documents import printable
from hauberk.policy.objects import PATH_OPERATIONS
from hauberk.policy.rules import DeviceMatch, Operation, PeerMatch, Rule, Section, SyscallMatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hauberk.policy.explain import Answer, Question

_SHOWN_CHARACTERS = 80
WITHOUT_PROGRAM = frozenset({Operation.PRESET, Operation.ATTACH, Operation.RECEIVE, Operation.SEND})
"""Operations whose rules name no programs."""


def rule_as_json(rule: Rule) -> dict[str, Any]:
    """Give a rule of the normal form as plain values, with nothing left out that says something."""
    result: dict[str, Any] = {
        "section": rule.section.value,
        "kind": rule.kind.value,
        "value": rule.value,
        "action": rule.action.value,
        "policy": rule.origin.policy,
        "field": rule.origin.field,
        "file": rule.origin.file,
        "line": rule.origin.line,
        "column": rule.origin.column,
    }
    optional: dict[str, Any] = {
        "recursive": rule.recursive,
        "readOnly": rule.read_only,
        "ownerOnly": rule.owner_only,
        "fromSource": list(rule.sources),
        "allowedArgs": list(rule.allowed_arguments),
        "match": _match_as_json(rule),
        "severity": rule.severity,
        "tags": list(rule.tags),
        "message": rule.message,
        "operations": [operation.value for operation in rule.operations],
        "implied": rule.implied,
    }
    result |= {name: value for name, value in optional.items() if value}
    conditions = {"pts": rule.terminal, "defaultDeny": rule.default_deny}
    return result | {name: value for name, value in conditions.items() if value is not None}


def _match_as_json(rule: Rule) -> dict[str, Any]:
    values: dict[str, object]
    match rule.match:
        case DeviceMatch(device_class, subclass, protocol, level):
            values = {"class": device_class, "subClass": subclass, "protocol": protocol, "level": level}
            return {name: value for name, value in values.items() if value is not None} or {"class": "ALL"}
        case PeerMatch(cidrs, interfaces, ports, quota, exceptions, icmp, groups, nothing):
            values = {
                "nothing": nothing,
                "cidrs": list(cidrs),
                "except": list(exceptions),
                "groups": [{"kind": group.kind, "value": group.value} for group in groups],
                "iface": list(interfaces),
                "ports": [{"port": first, "endPort": last, "protocol": name} for first, last, name in ports],
                "icmp": [{"family": f"IPv{family}", "type": kind} for family, kind in icmp],
                "quota": quota and dict(zip(("bytes", "seconds", "level"), quota, strict=True)),
            }
            return {name: value for name, value in values.items() if value}
        case SyscallMatch(names, path, recursive, directories):
            values = {
                "syscall": list(names),
                "path": path,
                "recursive": recursive,
                "fromSource": [{"dir": directory, "recursive": below} for directory, below in directories],
            }
            return {name: value for name, value in values.items() if value}
        case _:
            return {}


def rule_as_text(rule: Rule) -> str:
    """Give a rule in one line without anything that a terminal obeys: what it says, and where it was written."""
    value = rule.value
    if rule.section is Section.APPARMOR:
        value = printable(" ".join(value.split()), _SHOWN_CHARACTERS)
    words = [*dict.fromkeys((rule.action.value, rule.section.value, rule.kind.value)), value]
    words += ["recursive"] * rule.recursive + ["readOnly"] * rule.read_only + ["ownerOnly"] * rule.owner_only
    if rule.allowed_arguments:
        words.append("allowedArgs " + ", ".join(rule.allowed_arguments))
    if rule.terminal is not None:
        words.append(f"pts {str(rule.terminal).lower()}")
    if rule.default_deny is not None:
        words.append("with default deny" if rule.default_deny else "without default deny")
    if rule.sourced:
        words.append("fromSource " + ", ".join((*rule.sources, *(name for name, _ in rule.source_directories))))
    origin = rule.origin
    place = f"{origin.policy} {origin.field} at {origin.file}:{origin.line}:{origin.column}"
    words.append(f"(implied by Hauberk: {rule.message})" if rule.implied else f"({place})")
    return visible(" ".join(words))


def as_json(answer: Answer) -> dict[str, Any]:
    """Give an answer as plain values."""
    decision, seen = answer.decision, answer.seen
    kernel: Mapping[str, object] = {_object_name(seen): seen.object, "source": seen.source}
    return {
        **verdict_as_json(answer),
        "seen": {**kernel, **({"owner": seen.owner} if seen.operation in PATH_OPERATIONS else {})},
        "rule": None if decision.rule is None else rule_as_json(decision.rule),
        "lost": [{"rule": rule_as_json(rule), "why": why} for rule, why in decision.lost],
        "notes": list(answer.notes),
    }


def verdict_as_json(answer: Answer) -> dict[str, Any]:
    """Give an answer in short, for many questions: the question, the verdict, and which rule or default gave it."""
    asked, decision = answer.asked, answer.decision
    rule = decision.rule
    said: dict[str, object] = {
        "parent": asked.parent,
        "uid": asked.uid,
        "ownerUid": asked.owner_uid,
        "arguments": None if asked.arguments is None else list(asked.arguments),
        "terminal": asked.terminal,
        "beyondQuota": asked.beyond_quota or None,
    }
    return {
        "operation": asked.operation.value,
        _object_name(asked): asked.object,
        "source": asked.source,
        **({"owner": answer.seen.owner} if asked.operation in PATH_OPERATIONS else {}),
        **{name: value for name, value in said.items() if value is not None},
        "verdict": decision.verdict.name.lower(),
        "rule": None if rule is None else f"{rule.origin.policy} {rule.origin.field}".strip(),
        "reason": decision.reason,
        **({"notes": list(answer.notes)} if answer.notes else {}),
    }


def as_text(answer: Answer) -> str:
    """Give an answer for a person, without anything that a terminal obeys."""
    asked, seen, decision = answer.asked, answer.seen, answer.decision
    asked_object = seen.object if seen.object == asked.object else f"{asked.object} (the kernel sees {seen.object})"
    source = seen.source if seen.source == asked.source else f"{asked.source} (the kernel sees {seen.source})"
    first = f"{asked.operation.value} {asked_object}"
    if source or asked.operation not in WITHOUT_PROGRAM:
        first += f" by {source}" if source else " by a program that no rule names"
    if asked.operation in PATH_OPERATIONS:
        first += ", its owner" if seen.owner else ", not its owner"
    lines = [f"{decision.verdict.name.lower()}: {first}"]
    if decision.rule is None:
        lines.append(f"  because: {decision.reason}")
    else:
        lines.append(f"  decided by: {rule_as_text(decision.rule)}")
        if decision.rule.message and not decision.rule.implied:
            lines.append(f"  message: {decision.rule.message}")
        if decision.reason != "rule":
            lines.append(f"  but: {decision.reason}")
    lines += [f"  lost: {rule_as_text(rule)}: {why}" for rule, why in decision.lost]
    lines += [f"  note: {note}" for note in answer.notes]
    return "\n".join(map(visible, lines))


def _object_name(question: Question) -> str:
    return "path" if question.operation in PATH_OPERATIONS else "object"
