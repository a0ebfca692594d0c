# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy diff``: what a change of policies changes."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from hauberk.cli import inputs
from hauberk.cli.asking import DEFAULTS
from hauberk.errors import visible
from hauberk.policy import collection
from hauberk.policy.answers import WITHOUT_PROGRAM, rule_as_json, rule_as_text
from hauberk.policy.difference import Side, compare
from hauberk.policy.objects import PATH_OPERATIONS
from hauberk.policy.rules import POSTURES

if TYPE_CHECKING:
    import argparse

    from hauberk.cli.inputs import Inputs
    from hauberk.policy.difference import Change, Outcome
    from hauberk.policy.selectors import WorkloadIdentity

_EFFECTS = {
    "refused": "becomes refused",
    "allowed": "becomes allowed",
    "audited": "becomes audited",
    "unaudited": "is no longer audited",
}
_SHOWN = 5


def diff(arguments: argparse.Namespace) -> int:
    """Print every change. The exit code tells whether there is one."""
    given = [inputs.read([name]) for name in (arguments.old, arguments.new)]
    cache = inputs.cache(wanted=not arguments.no_cache)
    old, new = (
        Side(
            collection.load(one.files, cache),
            POSTURES[arguments.posture or one.posture or "block"],
            one.postures,
            DEFAULTS[arguments.default or one.default or "deny"],
        )
        for one in given
    )
    changes = sorted(compare(old, new), key=_order)
    targets_differ = given[0].target != given[1].target
    if arguments.json:
        report = {
            "same": not changes and not targets_differ,
            "target": {"old": given[0].target, "new": given[1].target} if targets_differ else None,
            "changes": [_as_json(change) for change in changes],
        }
        inputs.write(json.dumps(report, indent=2))
    else:
        _print(changes, given if targets_differ else [])
    return 1 if changes or targets_differ else 0


def _order(change: Change) -> tuple[object, ...]:
    question = change.question
    effect = list(_EFFECTS).index(change.effect)
    return (effect, not all(change.covered), question.operation.value, question.object, question.source or "")


def _print(changes: list[Change], targets: list[Inputs]) -> None:
    for change in changes:
        if all(change.covered):
            inputs.write("\n".join(_lines(change)))
    for line in _covering(changes):
        inputs.write(line)
    if targets:
        inputs.write(
            f"other target: {json.dumps(targets[0].target)} before, {json.dumps(targets[1].target)} after; containers "
            "outside get the bundle's default"
        )
    counted = {effect: sum(change.effect == effect for change in changes) for effect in _EFFECTS}
    told = [f"{number} {effect}" for effect, number in counted.items() if number]
    inputs.write(", ".join(told) or ("the policies mean the same" if not targets else "the rules mean the same"))


def _covering(changes: list[Change]) -> list[str]:
    """Say in one line for each workload that policies cover on one side only, or on none, what becomes of it."""
    found: dict[tuple[str, tuple[bool, bool]], Counter[str]] = {}
    said = {True: "its policies decide", False: "the default decides"}
    for change in changes:
        if not all(change.covered):
            for workload in change.workloads or (None,):
                who = _workload(workload) if workload else "workloads that no policy covers"
                found.setdefault((who, change.covered), Counter())[change.effect] += 1
    lines = []
    for (who, (before, after)), effects in found.items():
        counted = ", ".join(f"{number} kinds of questions {_ARE[effect]}" for effect, number in effects.items())
        lines.append(f"covered otherwise: {who}: before, {said[before]}; after, {said[after]}: {counted}")
    return lines


_ARE = {
    "refused": "are refused",
    "allowed": "are allowed",
    "audited": "are audited",
    "unaudited": "are audited no more",
}


def _lines(change: Change) -> list[str]:
    question = change.question
    words = [f"{_EFFECTS[change.effect]}: {question.operation.value} {question.object}"]
    if question.operation not in WITHOUT_PROGRAM:
        words.append(f"by {question.source}" if question.source else "by a program that no rule names")
    if question.operation in PATH_OPERATIONS and any(rule.owner_only for rule in change.naming):
        words.append("as its owner" if question.owner else "as another than its owner")
    if question.arguments is not None:
        words.append(f"with the arguments {' '.join(question.arguments)}")
    if question.terminal is False:
        words.append("without a terminal")
    if question.beyond_quota:
        words.append("beyond the quota")
    return [
        visible(" ".join(words)),
        f"  before: {_outcome(change.before)}",
        f"  after:  {_outcome(change.after)}",
        f"  for:    {_workloads(change)}",
    ]


def _outcome(outcome: Outcome) -> str:
    return f"{outcome.verdict.name.lower()}: {outcome.reason if outcome.rule is None else rule_as_text(outcome.rule)}"


def _workloads(change: Change) -> str:
    shown = "; ".join(_workload(workload) for workload in change.workloads[:_SHOWN])
    more = len(change.workloads) - _SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def _workload(workload: WorkloadIdentity) -> str:
    words = ["host" if workload.host else "container"]
    if workload.container_name:
        words.append(f"named {workload.container_name}")
    if workload.labels:
        words.append("with " + ", ".join(f"{key}={value}" for key, value in workload.labels.items()))
    if workload.namespace:
        words.append(f"in namespace {workload.namespace}")
    return visible(" ".join(words))


def _as_json(change: Change) -> dict[str, Any]:
    question = change.question
    return {
        "effect": change.effect,
        "question": {
            "operation": question.operation.value,
            "object": question.object,
            "source": question.source,
            "owner": question.owner,
            "arguments": None if question.arguments is None else list(question.arguments),
            "terminal": question.terminal,
            "beyondQuota": question.beyond_quota,
        },
        "before": _outcome_as_json(change.before, covered=change.covered[0]),
        "after": _outcome_as_json(change.after, covered=change.covered[1]),
        "naming": [rule_as_json(rule) for rule in change.naming],
        "workloads": [
            {
                "host": workload.host,
                "namespace": workload.namespace,
                "labels": dict(workload.labels),
                "containerName": workload.container_name,
            }
            for workload in change.workloads
        ],
    }


def _outcome_as_json(outcome: Outcome, *, covered: bool) -> dict[str, Any]:
    return {
        "verdict": outcome.verdict.name.lower(),
        "rule": None if outcome.rule is None else rule_as_json(outcome.rule),
        "reason": outcome.reason,
        "covered": covered,
    }
