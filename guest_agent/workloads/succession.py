# SPDX-License-Identifier: Apache-2.0
"""The rules of a new bundle for a container that runs already: pure, and never looser for what the container has done.

A container that starts is looked at before it has run anything: what its paths lead to is the image's word. One that
runs may have prepared itself for a rule it expects, so what is found in it now counts on one side only:

* **What refuses may be resolved afresh.** A Block rule, and the limiting half of an Allow rule (``readOnly``,
  ``ownerOnly``), gets the forms found now besides those recorded at registration and the literal one. More forms of a
  rule that only ever refuses refuse more.
* **What lets pass is resolved as at registration, or literally.** That is Allow, and Audit too: in an allow-list it
  lets pass. A symbolic link made since then leads it nowhere.
* **Rights of its own are for sources that had some before.** Only their executables and libraries were kept from
  being replaced, and only they were kept from being traced. A source that the new bundle gives its first rights gets
  them in containers that start from now on; here its rule stands and grants nothing.
* A container that never had rules might have rearranged its file system; where a new bundle has rules for it, it gets
  the ones that refuse everything. So do containers that the bundle leaves to the default deny.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hauberk.policy.resolution import expand
from hauberk.policy.rules import Action, ObjectKind, Operation, Origin, Rule, RuleSet, Section, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Forms = tuple[tuple[str, tuple[str, ...]], ...]

_OTHER_OPERATION: Final = {Section.FILE: Operation.EXECUTE, Section.PROCESS: Operation.READ}


def refuse_everything(reason: str) -> RuleSet:
    """Give the rules of a container that may do nothing any more. ``reason`` is told with each alert."""
    return RuleSet(
        tuple(
            Rule(
                section,
                ObjectKind.DIRECTORY,
                "/",
                Action.BLOCK,
                Origin(policy="(successor)", field=""),
                recursive=True,
                message=reason,
            )
            for section in (Section.PROCESS, Section.FILE)
        ),
        Verdict.DENY,
    )


def has_rules(rule_set: RuleSet) -> bool:
    """Whether a container under these rules is kept from rearranging its file system."""
    return any(not rule.implied for rule in rule_set.rules)


def recorded_forms(forms: Forms) -> Callable[[str], tuple[str, ...]]:
    """Give the resolver of what was recorded at registration: of a path, or of the nearest directory above it."""
    known: Mapping[str, tuple[str, ...]] = dict(forms)

    def resolve(path: str) -> tuple[str, ...]:
        above, rest = path, ""
        while above not in known and above not in ("/", ""):
            above, name = posixpath.split(above)
            rest = posixpath.join("/", name + rest)
        found = known.get(above)
        return (path,) if found is None else tuple(dict.fromkeys((path, *(form + rest for form in found))))

    return resolve


def limiting(new: RuleSet) -> RuleSet:
    """Give what of a rule set only ever refuses: what may be resolved afresh."""
    found = []
    for rule in new.rules:
        if rule.action is Action.BLOCK:
            found.append(rule)
        elif rule.action is Action.ALLOW and (rule.read_only or rule.owner_only):
            found.append(replace(rule, action=Action.BLOCK))
    return replace(new, rules=tuple(found))


def granting(new: RuleSet, old: RuleSet, resolve: Callable[[str], tuple[str, ...]]) -> RuleSet:
    """Give what of a rule set lets pass, resolved by ``resolve`` and without rights for sources that had none."""
    found = expand(new, resolve)
    gained = found.privileged_sources() - privileged(old)
    letting = (rule for rule in found.rules if rule.action is not Action.BLOCK)
    return replace(found, rules=tuple(_without_sources(rule, gained) for rule in letting))


def joined(new: RuleSet, *parts: RuleSet) -> RuleSet:
    """Put the parts of ``new`` together again, each rule once."""
    return replace(new, rules=tuple(dict.fromkeys(rule for part in parts for rule in part.rules)))


def privileged(rule_set: RuleSet) -> frozenset[str]:
    """Give the sources that have rights of their own, those not counted that a rule only names without granting."""
    return replace(
        rule_set, rules=tuple(rule for rule in rule_set.rules if not _is_silenced(rule))
    ).privileged_sources()


def _without_sources(rule: Rule, gained: frozenset[str]) -> Rule:
    if not gained.intersection(rule.sources):
        return rule
    kept = tuple(source for source in rule.sources if source not in gained)
    # Left out altogether, the last Allow rule would turn an allow-list into a deny list.
    return replace(rule, sources=kept) if kept else replace(rule, operations=(_OTHER_OPERATION[rule.section],))


def _is_silenced(rule: Rule) -> bool:
    return bool(rule.sources) and rule.operations == (_OTHER_OPERATION.get(rule.section),)
