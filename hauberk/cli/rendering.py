# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy render``: what an engine would load for a workload, and which rules it would refuse."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

from hauberk.cli import asking, inputs
from hauberk.policy import coverage
from hauberk.policy.answers import rule_as_json
from hauberk.policy.rules import PACKET_SECTIONS, POSTURES, RuleSet, Section, join
from hauberk.policy.selectors import Scope

if TYPE_CHECKING:
    import argparse


def render(arguments: argparse.Namespace) -> int:
    """Print the rules and the size of the table as JSON."""
    subject = asking.workload(arguments)
    if subject.rule_set is None:
        inputs.write(json.dumps({"engine": arguments.engine, "rules": None, "reason": subject.uncovered}))
        return 1
    written = subject.rule_set
    of_author = [rule for rule in written.rules if not rule.implied]
    of_packets = arguments.engine == coverage.NFTABLES
    if of_packets:
        held = coverage.packets_in_force(of_author)
    else:
        held = coverage.in_force(of_author) if subject.scope is Scope.CONTAINER else ()
    # what follows from rules that are not held is not held either, as in the agent
    implying = join if held and not of_packets else RuleSet
    rule_set = implying(held, written.posture, written.postures)
    if arguments.rootfs is not None:
        from hauberk.policy.resolution import RootResolver, expand  # noqa: PLC0415 - only where a root is named

        with RootResolver(arguments.rootfs) as resolver:
            rule_set = expand(rule_set, resolver.resolve)
    refused = [
        {**_place(refusal), "rule": refusal.rule, "why": refusal.reason, "instead": refusal.instead}
        for refusal in coverage.report(of_author, subject.scope)
    ]
    shown = {
        "engine": arguments.engine,
        "scope": subject.scope.value,
        "posture": _posture(rule_set, PACKET_SECTIONS if of_packets else coverage.ENFORCED_SECTIONS),
        "allowLists": [section.value for section in Section if rule_set.is_allow_list(section)],
        "privilegedSources": sorted(rule_set.privileged_sources()),
        "rules": [rule_as_json(rule) for rule in rule_set.rules],
        "refused": refused,
        "table": _table_sizes(rule_set) if rule_set.rules and not of_packets else None,
    }
    if not any(coverage.enforced(rule, subject.scope) for rule in of_author):
        shown["note"] = coverage.BY_DEFAULT
    inputs.write(json.dumps(shown, indent=2))
    return 0


def _place(refusal: coverage.Unenforced) -> dict[str, Any]:
    origin = refusal.origin
    return {
        "policy": origin.policy,
        "field": origin.field,
        "file": origin.file,
        "line": origin.line,
        "column": origin.column,
    }


def _posture(rule_set: RuleSet, sections: frozenset[Section]) -> dict[str, str]:
    words = {verdict: word for word, verdict in POSTURES.items()}
    return {section.value: words[rule_set.posture_of(section)] for section in sorted(sections)}


def _table_sizes(rule_set: RuleSet) -> dict[str, int] | None:
    """Give the sizes of the engine's table, or None where the agent is not installed beside this command."""
    try:
        plan = importlib.import_module("guest_agent.engines.bpf_lsm.plan")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "guest_agent":
            raise
        return None
    table = plan.compile_table(rule_set)
    return {"bytes": len(table.blob), "states": table.states, "classes": table.classes, "sources": len(table.sources)}
