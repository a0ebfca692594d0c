# SPDX-License-Identifier: Apache-2.0
"""Policies -> rules in the normal form -> the rule set of one workload.

Here inheritance ends: a rule's action, severity, tags and message are its own, else its section's, else the spec's;
an action that nobody gives is Block. Each rule carries the place it was written at, down to the engine and back in
every alert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.policy import globs
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section, Verdict, implied_rules
from hauberk.policy.selectors import CONTAINER_NAME_LABEL, Selector, WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.policy.models import KubeArmorPolicy, Policy

POSTURES = {"block": Verdict.DENY, "audit": Verdict.AUDIT, "allow": Verdict.ALLOW}
"""The words for what an allow-list leaves unmatched."""

_LISTS = (
    ("matchPaths", ObjectKind.PATH, "path"),
    ("matchDirectories", ObjectKind.DIRECTORY, "dir"),
    ("matchPatterns", ObjectKind.PATTERN, "pattern"),
)


def selector(model: KubeArmorPolicy) -> Selector:
    """Give the selector of a policy in the form that is matched against workloads."""
    written = model.spec.selector
    labels = dict(written.matchLabels)
    container_name = labels.pop(CONTAINER_NAME_LABEL, None)
    pairs: dict[str, list[str]] = {"In": [], "NotIn": []}
    for expression in written.matchExpressions:
        pairs[expression.operator] += expression.values
    return Selector(tuple(labels.items()), tuple(pairs["In"]), tuple(pairs["NotIn"]), container_name)


def rules(policy: Policy) -> tuple[Rule, ...]:
    """Give the rules of one policy in the order they are written, with inheritance applied."""
    return tuple(_rules(policy))


def _rules(policy: Policy) -> Iterable[Rule]:
    spec = policy.model.spec
    for section in (Section.PROCESS, Section.FILE):
        model = getattr(spec, section.value)
        if model is None:
            continue
        for list_name, kind, field in _LISTS:
            for index, entry in enumerate(getattr(model, list_name)):
                path = ("spec", section.value, list_name, index)
                line, column = policy.document.place(path)
                origin = Origin(
                    policy.name, f"spec.{section.value}.{list_name}[{index}]", policy.document.file, line, column
                )
                levels = (entry, model, spec)
                by_name = getattr(entry, "execname", None)
                value = by_name if by_name is not None else getattr(entry, field)
                yield Rule(
                    section=section,
                    kind=ObjectKind.EXECNAME if by_name is not None else _object_kind(kind, value),
                    value=value,
                    action=Action(_inherited(levels, "action", Action.BLOCK)),
                    origin=origin,
                    recursive=getattr(entry, "recursive", False),
                    read_only=getattr(entry, "readOnly", False),
                    owner_only=entry.ownerOnly,
                    sources=tuple(dict.fromkeys(source.path for source in getattr(entry, "fromSource", None) or ())),
                    severity=_inherited(levels, "severity", 0),
                    tags=tuple(_inherited(levels, "tags", ())),
                    message=_inherited(levels, "message", ""),
                )


def _object_kind(kind: ObjectKind, value: str) -> ObjectKind:
    """Give what the value of a list names; a path with wildcards is taken for the pattern that it is."""
    return ObjectKind.PATTERN if kind is ObjectKind.PATH and globs.has_wildcards(value) else kind


def _inherited(levels: Iterable[Any], name: str, default: Any) -> Any:  # noqa: ANN401 - the attribute decides the type
    return next((value for level in levels if (value := getattr(level, name)) is not None), default)


def covering(policies: Iterable[Policy], workload: WorkloadIdentity) -> tuple[Policy, ...]:
    """Give the policies that cover a workload. None: the bundle's default decides, not an empty rule set."""
    return tuple(
        policy for policy in policies if selector(policy.model).matches(policy.model.metadata.namespace, workload)
    )


def build(policies: Iterable[Policy], posture: Verdict = Verdict.DENY) -> RuleSet:
    """Give the rule set of policies already selected: their rules, and what Hauberk implies."""
    written = tuple(rule for policy in policies for rule in rules(policy))
    return RuleSet((*written, *implied_rules(written, posture)), posture)


def rule_set(policies: Iterable[Policy], workload: WorkloadIdentity, posture: Verdict = Verdict.DENY) -> RuleSet | None:
    """Give the rule set of a workload, before its paths are resolved; None if no policy covers it.

    None is not "no rules": the caller applies the bundle's default for uncovered workloads, which is deny unless
    signed otherwise.
    """
    selected = covering(policies, workload)
    return build(selected, posture) if selected else None
