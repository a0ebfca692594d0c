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
* **A source with rights of its own maps libraries and what a rule names for it**, no more. In a container that starts,
  it may map whatever the workload cannot write; here the workload may have written it before it was kept from it.
  The system's library directories were read-only for as long as there were such sources.
* A container that never had rules might have rearranged its file system; where a new bundle has rules for it, it gets
  the ones that refuse everything. So do containers that the bundle leaves to the default deny.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hauberk.policy.resolution import expand
from hauberk.policy.rules import (
    LIBRARY_DIRECTORIES,
    Action,
    ObjectKind,
    Operation,
    Origin,
    PeerMatch,
    Rule,
    RuleSet,
    Section,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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


def refuse_packets(reason: str) -> RuleSet:
    """Give the rules about packets of such a container: nothing comes in, nothing goes out, old flows included."""
    return RuleSet(
        tuple(
            Rule(
                section,
                ObjectKind.PEER,
                "any peer",
                Action.BLOCK,
                Origin(policy="(successor)", field=""),
                message=reason,
                match=PeerMatch(),
            )
            for section in (Section.INGRESS, Section.EGRESS)
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
    gained = with_grants(found) - privileged(old)
    letting = (rule for rule in found.rules if rule.action is not Action.BLOCK)
    return replace(found, rules=tuple(_without_sources(rule, gained) for rule in letting))


def joined(new: RuleSet, *parts: RuleSet, resolve: Callable[[str], tuple[str, ...]]) -> RuleSet:
    """Put the parts of ``new`` together again, each rule once, and limit what sources with rights of their own map."""
    together = replace(new, rules=tuple(dict.fromkeys(rule for part in parts for rule in part.rules)))
    sources = tuple(sorted(together.privileged_sources()))
    if not sources:
        return together
    return replace(together, rules=(*together.rules, *_mapping_limits(together, sources, resolve)))


def _mapping_limits(
    rule_set: RuleSet, sources: tuple[str, ...], resolve: Callable[[str], tuple[str, ...]]
) -> Iterator[Rule]:
    """Give the rules that leave to ``sources`` the libraries, and of these what the rules for everybody leave.

    They are implied ones, so that none of them makes a source pass for one with rights of its own.
    """
    limited = Rule(
        Section.PROCESS,
        ObjectKind.DIRECTORY,
        "/",
        Action.BLOCK,
        Origin(policy="(implied)", field=""),
        recursive=True,
        sources=sources,
        message="in a container that ran before this bundle, a source with rights of its own maps libraries only",
        operations=(Operation.MAP,),
        implied=True,
    )
    yield limited
    libraries = tuple(f"{form}/" for directory in LIBRARY_DIRECTORIES for form in resolve(directory))
    if any(rule.section is Section.FILE and _may_open(rule, libraries) for rule in rule_set.rules):
        return  # not read-only as a whole
    blocking = [
        rule
        for rule in rule_set.rules
        if rule.section is Section.PROCESS and rule.action is Action.BLOCK and _touches(rule, libraries)
    ]
    # What is said of a source stands before what is said of all; so these rules may not stand beside such a word.
    free = tuple(source for source in sources if not any(source in rule.sources for rule in blocking))
    if not free:
        return
    mapping = (
        rule
        for rule in rule_set.rules
        if rule.implied and rule.action is Action.ALLOW and rule.operations == (Operation.MAP,)
    )
    for rule in (*mapping, *(rule for rule in blocking if not rule.sources)):
        yield replace(rule, sources=free, operations=(Operation.MAP,), implied=True)


def _may_open(rule: Rule, libraries: tuple[str, ...]) -> bool:
    """Whether a file rule could let a part of the library directories be written, which are read-only otherwise."""
    return rule.action is not Action.BLOCK and (rule.kind is ObjectKind.EXECNAME or rule.value.startswith(libraries))


def _touches(rule: Rule, libraries: tuple[str, ...]) -> bool:
    """Whether a rule could match something in the library directories."""
    if rule.kind is ObjectKind.EXECNAME:
        return True
    prefix = rule.value
    if rule.kind is ObjectKind.PATTERN:
        prefix = min((rule.value.partition(wildcard)[0] for wildcard in "*?[{\\"), key=len)
    elif rule.kind is ObjectKind.PATH:
        return rule.value.startswith(libraries)
    return prefix.startswith(libraries) or any(library.startswith(prefix) for library in libraries)


def privileged(rule_set: RuleSet) -> frozenset[str]:
    """Give the sources that have rights of their own, those not counted that a rule only names without granting."""
    return replace(
        rule_set, rules=tuple(rule for rule in rule_set.rules if not _is_silenced(rule))
    ).privileged_sources()


def with_grants(rule_set: RuleSet) -> frozenset[str]:
    """Give the sources that some rule lets pass where another refuses, the implied ones that refuse included."""
    return replace(rule_set, rules=tuple(replace(rule, implied=False) for rule in rule_set.rules)).privileged_sources()


def _without_sources(rule: Rule, gained: frozenset[str]) -> Rule:
    if not gained.intersection(rule.sources):
        return rule
    kept = tuple(source for source in rule.sources if source not in gained)
    # Left out altogether, the last Allow rule would turn an allow-list into a deny list.
    return replace(rule, sources=kept) if kept else replace(rule, operations=(_OTHER_OPERATION[rule.section],))


def _is_silenced(rule: Rule) -> bool:
    return bool(rule.sources) and rule.operations == (_OTHER_OPERATION.get(rule.section),)
