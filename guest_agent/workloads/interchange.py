# SPDX-License-Identifier: Apache-2.0
"""The normal form of rules as JSON, between the agent and its short-lived children, and in its records of workloads.

Reading back is strict: a record that is not what was written raises ValueError, and its reader then does without. What
is read back must therefore be written back as the same values; a number for a flag, a list too long, a word unknown
are all noticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from hauberk.policy.rules import (
    Action,
    DeviceMatch,
    LabelRequirement,
    ObjectKind,
    Operation,
    Origin,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Rule,
    RuleSet,
    Section,
    SyscallMatch,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, object] | list[object] | str | int | float | bool | None

Match = DeviceMatch | PeerMatch | SyscallMatch
_Value = TypeVar("_Value")


def rule_set_to_json(rule_set: RuleSet) -> dict[str, object]:
    """Give a rule set as JSON values."""
    return {
        "posture": int(rule_set.posture),
        "postures": [[section.value, int(verdict)] for section, verdict in rule_set.postures],
        "rules": [rule_to_json(rule) for rule in rule_set.rules],
    }


def rule_set_from_json(value: object) -> RuleSet:
    """Read back what :func:`rule_set_to_json` gave. Raises ValueError."""
    if not isinstance(value, dict) or value.keys() != {"posture", "postures", "rules"}:
        message = "found no rule set, expected an object with posture, postures and rules"
        raise ValueError(message)
    postures = [_fields(item, 2) for item in _list(value["postures"])]
    return RuleSet(
        tuple(rule_from_json(rule) for rule in _list(value["rules"])),
        Verdict(_integer(value["posture"])),
        tuple((Section(_text(section)), Verdict(_integer(verdict))) for section, verdict in postures),
    )


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
        list(rule.allowed_arguments),
        rule.terminal,
        _match_to_json(rule.match),
        rule.default_deny,
    ]


_FIELDS: Final = 18
_ORIGIN_FIELDS: Final = 5


def rule_from_json(value: object) -> Rule:
    """Read back what :func:`rule_to_json` gave. Raises ValueError."""
    section, kind, name, action, place, recursive, read_only, owner_only, *rest = _fields(value, _FIELDS)
    sources, severity, tags, text, operations, implied, arguments, terminal, match, default_deny = rest
    policy, field, file, line, column = _fields(place, _ORIGIN_FIELDS)
    return Rule(
        section=Section(_text(section)),
        kind=ObjectKind(_text(kind)),
        value=_text(name),
        action=Action(_text(action)),
        origin=Origin(_text(policy), _text(field), _text(file), _integer(line), _integer(column)),
        recursive=_flag(recursive),
        read_only=_flag(read_only),
        owner_only=_flag(owner_only),
        sources=texts(sources),
        severity=_integer(severity),
        tags=texts(tags),
        message=_text(text),
        operations=tuple(Operation(operation) for operation in texts(operations)),
        implied=_flag(implied),
        allowed_arguments=texts(arguments),
        terminal=_optional(_flag, terminal),
        match=_optional(_match_from_json, match),
        default_deny=_optional(_flag, default_deny),
    )


def _match_to_json(what: Match | None) -> list[object] | None:
    match what:
        case DeviceMatch():
            return ["device", what.device_class, what.subclass, what.protocol, what.level]
        case PeerMatch():
            ports = [list(one) for one in what.ports]
            quota = None if what.quota is None else list(what.quota)
            icmp = [list(one) for one in what.icmp]
            groups = [_group_to_json(group) for group in what.groups]
            addresses = (list(what.cidrs), list(what.exceptions))
            return ["peer", *addresses, groups, list(what.interfaces), ports, icmp, quota, what.nothing]
        case SyscallMatch():
            directories = [list(one) for one in what.source_directories]
            return ["syscall", list(what.names), what.path, what.recursive, directories]
        case _:
            return None


def _match_from_json(value: object) -> Match:
    kind, *parts = _list(value) or [None]
    match kind:
        case "device":
            return DeviceMatch(*(_optional(_integer, part) for part in _fields(parts, 4)))
        case "peer":
            return _peer_match(parts)
        case "syscall":
            names, path, recursive, sources = _fields(parts, 4)
            directories = tuple(_directory(one) for one in _list(sources))
            return SyscallMatch(texts(names), _optional(_text, path), _flag(recursive), directories)
        case _:
            message = f"found the match {kind!r}, expected device, peer or syscall"
            raise ValueError(message)


def _peer_match(parts: list[object]) -> PeerMatch:
    cidrs, exceptions, groups, interfaces, ports, icmp, quota, nothing = _fields(parts, 8)
    return PeerMatch(
        texts(cidrs),
        texts(interfaces),
        tuple(_port_range(one) for one in _list(ports)),
        _optional(_quota, quota),
        texts(exceptions),
        tuple(_icmp(one) for one in _list(icmp)),
        tuple(_group(one) for one in _list(groups)),
        _flag(nothing),
    )


def _group_to_json(group: PeerGroup) -> list[object]:
    selector = group.selector
    if selector is None:
        return [group.kind, group.value, None]
    namespaces = None if selector.namespaces is None else list(selector.namespaces)
    labels = [requirements_to_json(asked) for asked in (selector.labels, selector.namespace_labels)]
    return [group.kind, group.value, [labels[0], namespaces, labels[1]]]


def requirements_to_json(asked: tuple[LabelRequirement, ...]) -> list[object]:
    """Give what a selector asks of labels as JSON values."""
    return [[one.key, one.operator, list(one.values)] for one in asked]


def _group(value: object) -> PeerGroup:
    kind, name, selector = _fields(value, 3)
    if kind not in {"name", "entity", "workloads"}:
        message = f"found the group {kind!r}, expected name, entity or workloads"
        raise ValueError(message)
    return PeerGroup(kind, _text(name), _optional(_selector, selector))


def _selector(value: object) -> PeerSelector:
    labels, namespaces, namespace_labels = _fields(value, 3)
    return PeerSelector(requirements(labels), _optional(texts, namespaces), requirements(namespace_labels))


def pairs(value: object) -> tuple[tuple[str, str], ...]:
    """Read a list of pairs of texts. Raises ValueError."""
    found = [_fields(one, 2) for one in _list(value)]
    return tuple((_text(key), _text(content)) for key, content in found)


def requirements(value: object) -> tuple[LabelRequirement, ...]:
    """Read what :func:`requirements_to_json` gave. Raises ValueError."""
    return tuple(_requirement(one) for one in _list(value))


def _requirement(value: object) -> LabelRequirement:
    key, operator, values = _fields(value, 3)
    if operator not in {"In", "NotIn", "Exists", "DoesNotExist"}:
        message = f"found the operator {operator!r}, expected In, NotIn, Exists or DoesNotExist"
        raise ValueError(message)
    return LabelRequirement(_text(key), operator, texts(values))


def _icmp(value: object) -> tuple[int, int | None]:
    family, kind = _fields(value, 2)
    return (_integer(family), _optional(_integer, kind))


def _port_range(value: object) -> tuple[int, int, str]:
    first, last, protocol = _fields(value, 3)
    return (_integer(first), _integer(last), _text(protocol))


def _quota(value: object) -> tuple[int, int, str]:
    octets, seconds, level = _fields(value, 3)
    return (_integer(octets), _integer(seconds), _text(level))


def _directory(value: object) -> tuple[str, bool]:
    directory, recursive = _fields(value, 2)
    return (_text(directory), _flag(recursive))


def _optional(read: Callable[[object], _Value], value: object) -> _Value | None:
    return None if value is None else read(value)


def _fields(value: object, number: int) -> list[object]:
    if not isinstance(value, list) or len(value) != number:
        message = f"found no array of {number} fields, expected one"
        raise ValueError(message)
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        message = f"found {type(value).__name__}, expected an array"
        raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
    return value


def texts(value: object) -> tuple[str, ...]:
    """Read a list of texts. Raises ValueError."""
    return tuple(_text(item) for item in _list(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"found {type(value).__name__}, expected a string"
        raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
    return value


def _integer(value: object) -> int:
    if type(value) is not int:
        message = f"found {type(value).__name__}, expected a whole number"
        raise ValueError(message)
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        message = f"found {type(value).__name__}, expected true or false"
        raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
    return value
