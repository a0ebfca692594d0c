# SPDX-License-Identifier: Apache-2.0
"""The one normal form of every policy kind, and the one place where precedence is decided.

Everything that answers "may this be done?" (``hauberk policy explain``, an engine's planner, the naming of an
alert) asks :func:`decide`. A planner groups paths by the set of rules that match them and asks for each group; so what
``explain`` says and what the kernel does cannot drift apart.

Invariants:

* A rule never grants more than it says: ``Block`` and ``Audit`` rules with ``readOnly`` or ``ownerOnly`` say nothing
  about the side those words leave open; they do not turn an allow-list's default into a grant.
* The more specific rule decides: a rule limited to this source before one for every source; an exact path before an
  executable name before a directory or pattern; a longer literal prefix before a shorter one. Between rules for
  the same thing, Block beats Audit beats Allow.
* A section (``process``, ``file``) is a deny list until one Allow rule of that section exists; then what
  no rule matches gets the posture.
* Rules that Hauberk implies (``implied``) never turn a section into an allow-list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Action(StrEnum):
    """What a policy author wrote (KubeArmor's spelling)."""

    ALLOW = "Allow"
    AUDIT = "Audit"
    BLOCK = "Block"


class Section(StrEnum):
    """The part of a policy a rule stands in; each is an allow-list or a deny list of its own."""

    PROCESS = "process"
    FILE = "file"


class Operation(StrEnum):
    """What is asked of an object.

    ``EXECUTE`` starts a program; ``MAP`` maps a file executable (``ld.so /bin/denied`` is one). ``WRITE`` is every
    change: open for
    writing, create, unlink, rename, link, truncate, chmod, chown.
    """

    EXECUTE = "execute"
    MAP = "map"
    READ = "read"
    WRITE = "write"


OPERATIONS_OF: dict[Section, tuple[Operation, ...]] = {
    Section.PROCESS: (Operation.EXECUTE, Operation.MAP),
    Section.FILE: (Operation.READ, Operation.WRITE),
}
SECTION_OF: dict[Operation, Section] = {op: section for section, ops in OPERATIONS_OF.items() for op in ops}


class ObjectKind(StrEnum):
    """How a rule names its object."""

    PATH = "path"  # exactly this path
    DIRECTORY = "directory"  # the directory itself and its children; with recursive, everything below it
    PATTERN = "pattern"  # AppArmor glob
    EXECNAME = "execname"  # last component of the path


class Verdict(IntEnum):
    """The kernel's three answers. The numbers are the two-bit values in the kernel's tables."""

    ALLOW = 0
    AUDIT = 1
    DENY = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule came from, so that an error, an explanation and an alert can name it."""

    policy: str  # "namespace/name" or "name"
    field: str  # "spec.process.matchPaths[0]"
    file: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One matcher with an action. ``value`` is an absolute path without trailing slash (PATH), with one (DIRECTORY)."""

    section: Section
    kind: ObjectKind
    value: str
    action: Action
    origin: Origin
    recursive: bool = False
    read_only: bool = False
    owner_only: bool = False
    sources: tuple[str, ...] = ()  # executables the rule is limited to; empty: any
    severity: int = 0
    tags: tuple[str, ...] = ()
    message: str = ""
    operations: tuple[Operation, ...] = ()  # empty: those of the section
    implied: bool = False

    def effect(self, operation: Operation, *, owner: bool) -> Verdict | None:
        """What the rule says about an operation on an object it matches; None when it says nothing."""
        if operation not in (self.operations or OPERATIONS_OF[self.section]):
            return None
        narrowed = (self.owner_only and not owner) or (self.read_only and operation is Operation.WRITE)
        if narrowed:
            return Verdict.AUDIT if self.action is Action.AUDIT else Verdict.DENY
        if self.action is not Action.ALLOW and (self.owner_only or self.read_only):
            return None
        return {Action.ALLOW: Verdict.ALLOW, Action.AUDIT: Verdict.AUDIT, Action.BLOCK: Verdict.DENY}[self.action]

    def literal_prefix(self) -> int:
        """Length in bytes of the part before the first wildcard: how specific a directory or pattern is."""
        if self.kind is not ObjectKind.PATTERN:
            return len(self.value.encode("utf-8", "surrogateescape"))
        literal: list[str] = []
        characters = iter(self.value)
        for character in characters:
            if character in "*?[{":
                break
            literal.append(next(characters, "") if character == "\\" else character)
        return len("".join(literal).encode("utf-8", "surrogateescape"))

    def specificity(self) -> tuple[int, int, int]:
        """Ordering key: larger decides. See the module's second invariant."""
        kinds = {ObjectKind.PATH: 3, ObjectKind.EXECNAME: 2, ObjectKind.DIRECTORY: 1, ObjectKind.PATTERN: 1}
        prefix = 0 if self.kind is ObjectKind.EXECNAME else self.literal_prefix()
        return (1 if self.sources else 0, kinds[self.kind], prefix)


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of one workload, with the default for what an allow-list leaves unmatched (``Verdict`` of the
    posture).
    """

    rules: tuple[Rule, ...]
    posture: Verdict = Verdict.DENY

    def is_allow_list(self, section: Section) -> bool:
        """Whether unmatched accesses of this section get the posture."""
        return any(rule.section is section and rule.action is Action.ALLOW and not rule.implied for rule in self.rules)

    def privileged_sources(self) -> frozenset[str]:
        """Executables to which some Allow rule grants what others may not do: their identity is worth stealing."""
        return frozenset(source for rule in self.rules if rule.action is Action.ALLOW for source in rule.sources)


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and why: the deciding rule (None: a default) and the rules that lost, most specific first."""

    verdict: Verdict
    rule: Rule | None
    reason: str
    lost: tuple[tuple[Rule, str], ...] = ()


def decide(
    rule_set: RuleSet, matching: Iterable[Rule], operation: Operation, *, source: str | None, owner: bool
) -> Decision:
    """Decide an operation on an object, given the rules whose object matches it.

    ``source`` is the resolved path of the acting executable (for EXECUTE the one that calls exec), ``owner`` whether
    the
    acting fsuid owns the object. Rules whose ``sources`` do not contain the source are taken as not matching.
    """
    section = SECTION_OF[operation]
    applicable: list[tuple[tuple[int, int, int, int], Rule, Verdict]] = []
    lost: list[tuple[Rule, str]] = []
    matching = tuple(matching)
    for rule in matching:
        if rule.section is not section:
            continue
        if rule.sources and source not in rule.sources:
            lost.append((rule, f"limited to source {', '.join(rule.sources)}"))
            continue
        effect = rule.effect(operation, owner=owner)
        if effect is None:
            lost.append((rule, f"says nothing about {operation.value} here"))
            continue
        applicable.append(((*rule.specificity(), int(effect)), rule, effect))
    if applicable:
        applicable.sort(key=lambda entry: entry[0], reverse=True)
        _, winner, verdict = applicable[0]
        losers = tuple((rule, "less specific, or weaker for the same object") for _, rule, _ in applicable[1:])
        return Decision(verdict, winner, "rule", losers + tuple(lost))
    if operation is Operation.MAP and source in rule_set.privileged_sources():
        # What a source with rights of its own maps, becomes that source: only what the workload cannot have written.
        write = decide(rule_set, matching, Operation.WRITE, source=None, owner=True)
        if write.verdict is not Verdict.DENY:
            return Decision(
                Verdict.DENY,
                None,
                "a source with rights of its own maps only files the workload cannot write",
                tuple(lost),
            )
    if rule_set.is_allow_list(section):
        return Decision(
            rule_set.posture, None, f"no {section.value} rule matches and the section is an allow-list", tuple(lost)
        )
    return Decision(Verdict.ALLOW, None, f"no {section.value} rule matches and the section is a deny list", tuple(lost))


LIBRARY_DIRECTORIES = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
)


def implied_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Rules that follow from the author's.

    What an allow-list of programs must still map, what a trusted source relies on.

    * Shared objects in the system's library directories may be mapped executable, unless a rule says otherwise:
      an allow-list of programs lists programs, not libraries.
    * If some source is granted rights of its own, its executable and the library directories are read-only: who can
      replace them can act as that source.
    """
    rules = tuple(rules)
    origin = Origin(policy="(implied)", field="")
    implied = [
        Rule(
            Section.PROCESS, ObjectKind.PATTERN, f"{directory}/**.so{suffix}", Action.ALLOW, origin,
            operations=(Operation.MAP,), implied=True, message="shared libraries may be mapped",
        )
        for directory in LIBRARY_DIRECTORIES
        for suffix in ("", ".*")
    ]  # fmt: skip
    privileged = sorted({source for rule in rules if rule.action is Action.ALLOW for source in rule.sources})
    if privileged:
        message = "what a source with rights of its own is made of may not be changed"
        implied += [
            Rule(Section.FILE, ObjectKind.DIRECTORY, f"{directory}/", Action.BLOCK, origin,
                 recursive=True, read_only=True, implied=True, message=message)
            for directory in LIBRARY_DIRECTORIES
        ]  # fmt: skip
        implied += [
            Rule(
                Section.FILE,
                ObjectKind.PATH,
                source,
                Action.BLOCK,
                origin,
                read_only=True,
                implied=True,
                message=message,
            )
            for source in privileged
        ]
    return tuple(implied)
