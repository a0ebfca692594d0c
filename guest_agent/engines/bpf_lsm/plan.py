# SPDX-License-Identifier: Apache-2.0
"""A rule set to the table the kernel's program walks, and that walk in Python.

One automaton holds all path rules of a workload: a state says which class of paths it has reached, a small matrix says
what (class, source, operation, owner) gets. Every entry of the matrix comes from :func:`hauberk.policy.rules.decide`;
this module only notices when two sets of rules must get the same answer, and asks once.

The answer of ``decide`` depends on the rules that match, not on which path made them match. So rules that differ in
nothing but their object are one *behaviour*, and in a set of behaviours only the order of the literal prefixes counts,
not their lengths. Classes are the distinct rows of the matrix, hence two paths with equal answers are in one class,
whatever rules they match.

Layout of ``Table.blob`` (version 1, little endian, offsets in words of 8 bytes from its start)::

    header       16 x u32: magic, version, file_start, exec_start, sinks, n_states, off_states, off_outputs,
                 off_transitions, n_transitions, off_verdicts, n_classes, n_sources, flags, 0, 0
    states       n_states x (u32 base, u32 default target)
    outputs      n_states x (u16 class, u16 source, u16 class of what is below, u16 flags: 1, 2 = guarded)
    transitions  n_transitions x (u32 state the cell belongs to or 0xffffffff, u32 target)
                 (there is a cell for every byte behind every base)
    verdicts     n_classes x n_sources words; operation o, owner w: two bits at (o * 2 + w) * 2

READ and WRITE walk from ``file_start``, EXECUTE and MAP from ``exec_start``. Class 0 is that of paths no rule matches.
A state below ``sinks`` is never left again. What "below" a state is: every path reached from it by one byte or more;
its row is, entry by entry, the worst of theirs. The state is guarded when that row denies anything to anyone: 1 for
READ or WRITE, 2 for EXECUTE or MAP, since each automaton asks only for its own.

Equal rule sets give equal bytes, in whatever order the rules are listed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from guest_agent.engines.bpf_lsm.automaton import EMPTY_CELL, Automaton, AutomatonError, Comb, build, pack
from hauberk.errors import HauberkError
from hauberk.policy.coverage import strictest
from hauberk.policy.globs import GlobError, Literal, Node, rule_object, to_bytes
from hauberk.policy.rules import PATH_SECTIONS, ObjectKind, Operation, Rule, RuleSet, Section, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC: Final = 0x314B4248
VERSION: Final = 1
MAXIMUM_TABLE_BYTES: Final = 4 * 1024 * 1024
MAXIMUM_CLASSES: Final = 65535
MAXIMUM_SOURCES: Final = 256
"""Columns of the matrix, "any other source" included."""

FLAG_FILE: Final = 1
"""Some READ or WRITE can get another answer than ALLOW."""
FLAG_EXEC: Final = 2
"""Some EXECUTE or MAP can get another answer than ALLOW."""
FLAG_RULES: Final = 4
"""The workload has path rules: its view of the file system must not be rearranged."""
GUARDED: Final = {Operation.WRITE: 1, Operation.EXECUTE: 2}  # by automaton: a denial of its own operations below

_HEADER: Final = struct.Struct("<16I")
_WORD: Final = 8
_OPERATIONS: Final = (Operation.EXECUTE, Operation.MAP, Operation.READ, Operation.WRITE)
_INDEX: Final = {operation: index for index, operation in enumerate(_OPERATIONS)}
_EXEC_BITS: Final = 0x00FF
_FILE_BITS: Final = 0xFF00
_SEVERE: Final = 0xAAAA  # in an entry, the bit set by DENY alone
# While rows are joined, ALLOW, AUDIT, DENY are 00, 01, 11: the worst of two rows is their bitwise or.
_JOINABLE: Final = {Verdict.ALLOW: 0b00, Verdict.AUDIT: 0b01, Verdict.DENY: 0b11}


class PlanError(HauberkError):
    """The rules cannot become a table; the message says which rules or which limit, and what to do."""


class TableError(HauberkError):
    """A blob is not a table of this version."""


@dataclass(frozen=True, slots=True)
class Table:
    """A compiled rule set. ``sources[i - 1]`` is the path of source ``i``; ``states`` and ``classes`` are counts."""

    blob: bytes
    states: int
    classes: int
    sources: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the blob, in hexadecimal."""
        return hashlib.sha256(self.blob).hexdigest()

    def describe(self) -> dict[str, int | str | list[str] | dict[str, bool]]:
        """Give sizes and properties for ``hauberk policy render``."""
        view = _View(self.blob)
        return {
            "format": VERSION,
            "digest": self.digest,
            "bytes": len(self.blob),
            "states": view.n_states,
            "sinks": view.sinks,
            "transitions": view.n_transitions,
            "transitionsUsed": view.used_transitions(),
            "classes": view.n_classes,
            "sources": list(self.sources),
            "decides": {
                "file": bool(view.flags & FLAG_FILE),
                "process": bool(view.flags & FLAG_EXEC),
                "rules": bool(view.flags & FLAG_RULES),
            },
        }


def fingerprint(rule_set: RuleSet) -> str:
    """Return a digest (SHA-256, hexadecimal) that is equal only for rule sets that compile to the same table."""
    rules = strictest(rule_set.rules)
    document = {
        "format": VERSION,
        "posture": int(rule_set.posture),
        "rules": sorted({json.dumps(_identity(rule)) for rule in rules}),
    }
    if rule_set.postures:
        document["postures"] = sorted((section.value, int(verdict)) for section, verdict in rule_set.postures)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def compile_table(rule_set: RuleSet) -> Table:
    """Compile a rule set whose paths are resolved. Rules that are not about paths make no table.

    Conditions that the kernel's program does not see are taken at their strictest. Raises PlanError when an object or
    source cannot be read, or when the table would exceed a limit.
    """
    rule_set = replace(rule_set, rules=strictest(rule_set.rules))
    rules = _distinct(rule_set)
    named = {source for rule in rules for source in rule.sources} | rule_set.privileged_sources()
    sources = tuple(sorted(named, key=to_bytes))
    if len(sources) >= MAXIMUM_SOURCES:
        message = (
            f"the rules name {len(sources)} different sources (fromSource), more than {MAXIMUM_SOURCES - 1};"
            " use fewer sources, or split the workload"
        )
        raise PlanError(message)
    for source in sources:
        if not source.startswith("/") or source.endswith("/") or "\0" in source:
            message = f"found the source {source!r}, expected the absolute path of an executable; correct fromSource"
            raise PlanError(message)
    rows = _Rows(_Decider(rules, rule_set), sources)
    file_rules: list[tuple[Node, int]] = []
    exec_rules: list[tuple[Node, int]] = []
    # decide() asks for WRITE when a source with rights of its own maps a file.
    writes_matter = bool(rule_set.privileged_sources())
    for rule, mark in zip(rules, rows.marks, strict=True):
        node = _object(rule)
        if rule.section is Section.FILE:
            file_rules.append((node, mark))
        if rule.section is Section.PROCESS or writes_matter:
            exec_rules.append((node, mark))
    exec_rules += [(Literal(to_bytes(source)), rows.source_mark(number)) for number, source in enumerate(sources, 1)]
    try:
        automaton = build((file_rules, exec_rules), rows.output_of, maximum_states=MAXIMUM_TABLE_BYTES // (2 * _WORD))
    except AutomatonError as error:
        raise PlanError(_too_large(rules, str(error))) from error
    return _encode(rules, sources, rows, automaton)


def lookup(blob: bytes, path: bytes, source_id: int, operation: Operation, owner: bool) -> Verdict:  # noqa: FBT001
    """Answer as the kernel does: walk ``path`` (absolute, resolved) and read the matrix. Raises TableError."""
    view = _View(blob)
    return view.verdict(view.output(view.walk(operation, path))[0], source_id, operation, owner=owner)


def source_of(blob: bytes, path: bytes) -> int:
    """Return the id of the source that ``path`` is when executed; 0: none that rules name. Raises TableError."""
    view = _View(blob)
    return view.output(view.walk(Operation.EXECUTE, path))[1]


def directory_change(blob: bytes, old: bytes, new: bytes, source_id: int, owner: bool) -> Verdict:  # noqa: FBT001
    """Answer as the kernel does for the rename of the directory ``old`` to ``new``. Raises TableError.

    Both names need WRITE. Beyond that, everything below changes its name. In each automaton either the rest of a path
    must mean the same behind both names, or nothing below the old name may be guarded; and where the file rules differ,
    what is below the new name must be writable for this source, whoever owns it: the objects below are not looked at
    one by one.
    """
    view = _View(blob)
    verdicts = [lookup(blob, path, source_id, Operation.WRITE, owner) for path in (old, new)]
    for operation in (Operation.WRITE, Operation.EXECUTE):
        before, after = (view.walk(operation, path.rstrip(b"/") + b"/") for path in (old, new))
        if before == after:
            continue
        if view.output(before)[3] & GUARDED[operation]:
            verdicts.append(Verdict.DENY)
        if operation is Operation.WRITE:
            below = view.output(after)[2]
            verdicts += [view.verdict(below, source_id, operation, owner=of_owner) for of_owner in (False, True)]
    return max(verdicts)


def _identity(rule: Rule) -> tuple[object, ...]:
    """Everything of a rule that can change a table, as JSON can hold it."""
    return (
        rule.section.value, rule.kind.value, rule.value, rule.action.value, rule.recursive, rule.read_only,
        rule.owner_only, rule.implied, sorted(set(rule.sources)), sorted({one.value for one in rule.operations}),
    )  # fmt: skip


def _distinct(rule_set: RuleSet) -> tuple[Rule, ...]:
    """Give the rules about paths without repetitions, in an order of their own."""
    about_paths = [rule for rule in reversed(rule_set.rules) if rule.section in PATH_SECTIONS]
    distinct = {json.dumps(_identity(rule)): rule for rule in about_paths}
    return tuple(distinct[key] for key in sorted(distinct))


def _name(rule: Rule) -> str:
    place = f"{rule.origin.policy} {rule.origin.field}".strip()
    return f"{place} ({rule.kind.value} {rule.value!r})"


def _object(rule: Rule) -> Node:
    try:
        return rule_object(rule)
    except (GlobError, UnicodeError) as error:
        message = f"{_name(rule)}: {error}"
        raise PlanError(message) from error


def _too_large(rules: Sequence[Rule], finding: str) -> str:
    wild = sorted((rule for rule in rules if rule.kind is ObjectKind.PATTERN), key=lambda rule: -rule.value.count("*"))
    message = f"{finding} ({len(rules)} different rules)"
    if wild:
        message += f"; the patterns with most wildcards are {', '.join(_name(rule) for rule in wild[:3])}"
    return message + "; use directories in place of lists of paths, fewer '**' and '*' in one pattern, or fewer rules"


class _Decider(RuleSet):
    """The rule set with its two questions answered once: ``decide`` asks them for every entry of the matrix."""

    __slots__ = ("_allow_lists", "_privileged")
    _allow_lists: frozenset[Section]
    _privileged: frozenset[str]

    def __init__(self, rules: tuple[Rule, ...], whole: RuleSet) -> None:
        super().__init__(rules, whole.posture, whole.postures)
        allow_lists = frozenset(section for section in PATH_SECTIONS if whole.is_allow_list(section))
        object.__setattr__(self, "_allow_lists", allow_lists)
        object.__setattr__(self, "_privileged", whole.privileged_sources())

    def is_allow_list(self, section: Section) -> bool:
        return section in self._allow_lists

    def privileged_sources(self) -> frozenset[str]:
        return self._privileged


class _Rows:
    """The matrix: rows of joinable entries, one 16-bit entry a source, as integers; and what the states put out."""

    def __init__(self, rule_set: RuleSet, sources: tuple[str, ...]) -> None:
        self._rule_set = rule_set
        self._sources = sources
        self._privileged = rule_set.privileged_sources()
        behaviours: dict[tuple[object, ...], int] = {}
        shapes: dict[tuple[object, ...], int] = {}
        self._examples: list[Rule] = []
        self._shapes: list[tuple[int, int]] = []  # (shape, length of the literal prefix)
        self.marks: list[int] = []
        for rule in rule_set.rules:
            try:
                specificity = rule.specificity()
            except UnicodeError as error:
                message = f"{_name(rule)}: {error}"
                raise PlanError(message) from error
            shape = (
                rule.section, rule.action, rule.read_only, rule.owner_only, rule.sources, rule.operations,
                specificity[:-1],
            )  # fmt: skip
            behaviour = (shape, specificity[-1])
            if behaviour not in behaviours:
                behaviours[behaviour] = len(self._examples)
                self._examples.append(rule)
                self._shapes.append((shapes.setdefault(shape, len(shapes)), specificity[-1]))
            self.marks.append(behaviours[behaviour])
        self._known: dict[tuple[tuple[int, int], ...], int] = {}
        self._outputs: dict[tuple[int, int], int] = {}
        self.outputs: list[tuple[int, int]] = []  # (row, source id)
        self.unmatched = self._row_of(())

    def source_mark(self, number: int) -> int:
        return len(self._examples) + number

    def output_of(self, marks: tuple[int, ...]) -> int:
        """Give the number of the output (row, source id) of a state where these marks match."""
        matching = tuple(mark for mark in marks if mark < len(self._examples))
        named = [mark - len(self._examples) for mark in marks if mark > len(self._examples)]
        output = (self._row_of(matching), named[0] if named else 0)
        number = self._outputs.setdefault(output, len(self.outputs))
        if number == len(self.outputs):
            self.outputs.append(output)
        return number

    def _row_of(self, matching: tuple[int, ...]) -> int:
        prefixes = sorted({self._shapes[mark][1] for mark in matching})
        ranks = {prefix: rank for rank, prefix in enumerate(prefixes)}
        key = tuple(sorted((self._shapes[mark][0], ranks[self._shapes[mark][1]]) for mark in matching))
        row = self._known.get(key)
        if row is None:
            row = self._known[key] = self._decide(tuple(self._examples[mark] for mark in matching))
        return row

    def _decide(self, matching: tuple[Rule, ...]) -> int:
        """Ask for every operation, owner and source; sources alike to these rules are asked for once."""
        answers: dict[tuple[object, ...], int] = {}
        entries: list[int] = []
        for source in (None, *self._sources):
            alike = (source in self._privileged, *(source in rule.sources for rule in matching if rule.sources))
            if alike not in answers:
                answers[alike] = self._entry(matching, source)
            entries.append(answers[alike])
        return int.from_bytes(struct.pack(f"<{len(entries)}H", *entries), "little")

    def _entry(self, matching: tuple[Rule, ...], source: str | None) -> int:
        entry = 0
        for index, operation in enumerate(_OPERATIONS):
            for owner in (False, True):
                verdict = decide(self._rule_set, matching, operation, source=source, owner=owner).verdict
                entry |= _JOINABLE[verdict] << (index * 2 + owner) * 2
        return entry


def _below(automaton: Automaton, rows: list[int]) -> list[int]:
    """Join, for each state, the rows of all states reached from it by one byte or more."""
    states = range(len(automaton.outputs))
    below = [0] * len(states)
    successors = [
        {automaton.defaults[state], *[item >> 8 for item in automaton.exceptions[state]]}
        for state in range(automaton.acyclic_from)
    ]
    predecessors: list[list[int]] = [[] for _ in successors]
    for state, targets in enumerate(successors):
        for target in targets:
            predecessors[target].append(state)
    waiting = dict.fromkeys(range(automaton.acyclic_from))
    while waiting:
        state, _ = waiting.popitem()
        joined = 0
        for target in successors[state]:
            joined |= rows[target] | below[target]
        if joined != below[state]:
            below[state] = joined
            waiting.update(dict.fromkeys(predecessors[state]))
    shared: dict[int, int] = {}
    for state in states[automaton.acyclic_from :]:
        target = automaton.defaults[state]
        joined = rows[target] | below[target]
        for item in automaton.exceptions[state]:
            joined |= rows[item >> 8] | below[item >> 8]
        below[state] = shared.setdefault(joined, joined)
    return below


def _order(automaton: Automaton, unmatched: int) -> tuple[list[int], int]:
    """List the reachable states in their final order, and count the sinks: those first, the dead one before all."""
    found = list(dict.fromkeys(automaton.starts))
    seen = set(found)
    for state in found:  # grows as it goes: breadth first
        for target in (automaton.defaults[state], *[item >> 8 for item in automaton.exceptions[state]]):
            if target not in seen:
                seen.add(target)
                found.append(target)
    sinks = [state for state in found if automaton.defaults[state] == state and not automaton.exceptions[state]]
    sinks.sort(key=lambda state: automaton.outputs[state] != unmatched)
    settled = set(sinks)
    return sinks + [state for state in found if state not in settled], len(sinks)


def _encode(rules: tuple[Rule, ...], sources: tuple[str, ...], rows: _Rows, automaton: Automaton) -> Table:
    outputs = rows.outputs
    row_of_state = [outputs[output][0] for output in automaton.outputs]
    below = _below(automaton, row_of_state)
    order, sinks = _order(automaton, rows.output_of(()))
    number = dict(zip(order, range(len(order)), strict=True))
    columns = len(sources) + 1
    classes: dict[int, int] = {rows.unmatched: 0}
    for chosen in (row_of_state, below):
        for state in order:
            classes.setdefault(chosen[state], len(classes))
    if len(classes) > MAXIMUM_CLASSES:
        message = f"the rules tell {len(classes)} classes of paths apart, more than {MAXIMUM_CLASSES}"
        raise PlanError(_too_large(rules, message))
    comb = pack(
        [tuple([number[item >> 8] << 8 | item & 0xFF for item in automaton.exceptions[state]]) for state in order]
    )
    size = _HEADER.size + _WORD * (2 * len(order) + len(comb.checks) + len(classes) * columns)
    if size > MAXIMUM_TABLE_BYTES:
        message = (
            f"the table would have {size} bytes ({len(order)} states, {len(comb.checks)} transitions,"
            f" {len(classes)} classes of paths for {columns} sources), more than {MAXIMUM_TABLE_BYTES}"
        )
        raise PlanError(_too_large(rules, message))
    everywhere = int.from_bytes(
        b"\x01\x00" * columns, "little"
    )  # an entry's mask times this: that mask in every column
    packed_outputs = [
        (
            classes[row_of_state[state]],
            outputs[automaton.outputs[state]][1],
            classes[below[state]],
            (GUARDED[Operation.WRITE] if below[state] & (_SEVERE & _FILE_BITS) * everywhere else 0)
            | (GUARDED[Operation.EXECUTE] if below[state] & (_SEVERE & _EXEC_BITS) * everywhere else 0),
        )
        for state in order
    ]
    file_start, exec_start = automaton.starts
    flags = 0
    if (row_of_state[file_start] | below[file_start]) & _FILE_BITS * everywhere:
        flags |= FLAG_FILE
    if (row_of_state[exec_start] | below[exec_start]) & _EXEC_BITS * everywhere:
        flags |= FLAG_EXEC
    if flags or any(not rule.implied for rule in rules):
        flags |= FLAG_RULES
    blob = _serialise(
        starts=(number[file_start], number[exec_start]),
        sinks=sinks,
        defaults=[number[automaton.defaults[state]] for state in order],
        outputs=packed_outputs,
        comb=comb,
        verdicts=[entry for row in classes for entry in _entries(row, columns)],
        classes=len(classes),
        columns=columns,
        flags=flags,
    )
    return Table(blob, len(order), len(classes), sources)


def _entries(row: int, columns: int) -> tuple[int, ...]:
    """Split a joined row into the matrix's words: 00, 01, 11 become the verdicts 0, 1, 2."""
    entries = struct.unpack(f"<{columns}H", row.to_bytes(2 * columns, "little"))
    return tuple((entry & _SEVERE) | (entry & ~(entry >> 1) & ~_SEVERE) for entry in entries)


def _serialise(  # noqa: PLR0913 - the parts of one header
    *,
    starts: tuple[int, int],
    sinks: int,
    defaults: list[int],
    outputs: list[tuple[int, int, int, int]],
    comb: Comb,
    verdicts: list[int],
    classes: int,
    columns: int,
    flags: int,
) -> bytes:
    states = len(defaults)
    off_states = _HEADER.size // _WORD
    off_outputs = off_states + states
    off_transitions = off_outputs + states
    off_verdicts = off_transitions + len(comb.checks)
    header = _HEADER.pack(
        MAGIC, VERSION, *starts, sinks, states, off_states, off_outputs, off_transitions, len(comb.checks),
        off_verdicts, classes, columns, flags, 0, 0,
    )  # fmt: skip
    return b"".join(
        (
            header,
            struct.pack(f"<{2 * states}I", *chain.from_iterable(zip(comb.bases, defaults, strict=True))),
            struct.pack(f"<{4 * states}H", *chain.from_iterable(outputs)),
            struct.pack(f"<{2 * len(comb.checks)}I", *chain.from_iterable(zip(comb.checks, comb.targets, strict=True))),
            struct.pack(f"<{len(verdicts)}Q", *verdicts),
        )
    )


class _View:
    """Reads a blob as the kernel's program does."""

    def __init__(self, blob: bytes) -> None:
        if len(blob) < _HEADER.size:
            message = (
                f"found a table of {len(blob)} bytes, expected at least the header's {_HEADER.size}; compile it again"
            )
            raise TableError(message)
        (
            magic, version, self.file_start, self.exec_start, self.sinks, self.n_states, self.off_states,
            self.off_outputs, self.off_transitions, self.n_transitions, self.off_verdicts, self.n_classes,
            self.n_sources, self.flags, _, _,
        ) = _HEADER.unpack_from(blob)  # fmt: skip
        if (magic, version) != (MAGIC, VERSION):
            message = f"found magic {magic:#x} version {version}, expected {MAGIC:#x}, {VERSION}; compile it again"
            raise TableError(message)
        end = _WORD * (self.off_verdicts + self.n_classes * self.n_sources)
        if len(blob) != end:
            message = f"found a table of {len(blob)} bytes, expected {end} by its header; compile it again"
            raise TableError(message)
        self._blob = blob

    def walk(self, operation: Operation, path: bytes) -> int:
        """Return the state after ``path``."""
        state: int = self.exec_start if operation in (Operation.EXECUTE, Operation.MAP) else self.file_start
        for byte in path:
            if state < self.sinks:
                break
            base, default = self._pair(self.off_states + state)
            cell = base + byte
            check, target = self._pair(self.off_transitions + cell) if cell < self.n_transitions else (EMPTY_CELL, 0)
            state = target if check == state else default
        return state

    def output(self, state: int) -> tuple[int, int, int, int]:
        """Return class, source id, class of what is below, flags."""
        first, second, third, fourth = struct.unpack_from("<4H", self._blob, _WORD * (self.off_outputs + state))
        return first, second, third, fourth

    def verdict(self, number: int, source_id: int, operation: Operation, *, owner: bool) -> Verdict:
        """Read the matrix. Raises TableError for a source the table does not have."""
        if not 0 <= source_id < self.n_sources:
            message = f"found source {source_id}, expected 0 to {self.n_sources - 1}; use the ids of this table"
            raise TableError(message)
        place = _WORD * (self.off_verdicts + number * self.n_sources + source_id)
        word = int.from_bytes(self._blob[place : place + _WORD], "little")
        return Verdict(word >> (_INDEX[operation] * 2 + owner) * 2 & 3)

    def used_transitions(self) -> int:
        """Count the cells that belong to a state."""
        cells = struct.unpack_from(f"<{2 * self.n_transitions}I", self._blob, _WORD * self.off_transitions)
        return sum(check != EMPTY_CELL for check in cells[::2])

    def _pair(self, word: int) -> tuple[int, int]:
        first, second = struct.unpack_from("<2I", self._blob, _WORD * word)
        return first, second
