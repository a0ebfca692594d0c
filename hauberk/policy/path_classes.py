# SPDX-License-Identifier: Apache-2.0
"""Every way in which paths can be named by a set of objects, each with one path as its witness.

An answer about a path depends on which rules' objects name it, and on nothing else of it (an invariant of
:mod:`hauberk.policy.rules`). So whoever wants to know something of *all* paths asks once for each set of objects that
some path is named by. This module finds these sets: it walks the product of all objects' syntax trees
(:mod:`hauberk.policy.globs`) and of the paths that the kernel knows (absolute, without empty components, ``.`` and
``..``), one byte at a time and only as far as the product goes. Equal states are visited once and bytes that no state
tells apart are tried once; the walk is therefore complete, and its witnesses are the shortest there are.

What holds for paths holds for names that expressions match, which any bytes may be (:func:`text_classes`), and for
domain names (:func:`name_classes`).

The number of states can grow exponentially for patterns made to do that. The walk then ends with an error instead of
an incomplete answer. The kernel's limits of length (255 bytes a name, 4096 a path) are not looked at: a witness may be
longer than a path can be, for patterns that name nothing shorter.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from hauberk.errors import HauberkError
from hauberk.policy import globs
from hauberk.policy.peers import NAME_BYTES
from hauberk.policy.rules import ObjectKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    _State = tuple[frozenset[int], int]  # of the product: states of the machine, and of the form of paths
    _Ways = dict[_State, tuple[_State, int] | None]  # state -> the one it was first reached from, and by which byte

MAXIMUM_STATES: Final = 200_000
"""Most states of the product that are visited; some seconds' worth."""

_DOT: Final = ord(".")
_START, _ROOT, _SLASH, _ONE_DOT, _TWO_DOTS, _NAME, _ANY_TEXT, _BEFORE_LABEL, _LABEL, _NONE = range(10)
_ENDS: Final = frozenset((_ROOT, _NAME, _ANY_TEXT, _LABEL))
_FRIENDLY: Final = b"xabcdefghijklmnopqrstuvwyz0123456789_-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PREFERENCE: Final = (*_FRIENDLY, *(byte for byte in range(1, 256) if byte not in _FRIENDLY))
"""Bytes in the order in which a witness prefers them."""


class TooManyStatesError(HauberkError):
    """Objects cannot be told apart completely within bounds."""

    exit_code = 3


class PathObject(NamedTuple):
    """What the object of a rule about paths is: kind, value and whether a directory is meant with all below it."""

    kind: ObjectKind
    value: str
    recursive: bool


class _Machine:
    """A nondeterministic automaton without empty moves: a state reads one byte out of a class and goes on to others."""

    def __init__(self) -> None:
        self.reads: list[frozenset[int]] = []
        self.targets: list[frozenset[int]] = []
        self.accepts: dict[int, int] = {}
        self.first: frozenset[int] = frozenset()

    def end(self, number: int) -> frozenset[int]:
        """Make the state in which ``number`` is accepted."""
        state = self.state(frozenset(), frozenset())
        self.accepts[state] = number
        return frozenset((state,))

    def state(self, reads: frozenset[int], targets: frozenset[int]) -> int:
        self.reads.append(reads)
        self.targets.append(targets)
        return len(self.reads) - 1

    def add(self, node: globs.Node, following: frozenset[int]) -> frozenset[int]:
        """Add the states of ``node``, which go on to ``following``; give the states it starts in."""
        match node:
            case globs.Literal(value):
                for byte in reversed(value):
                    following = frozenset((self.state(frozenset((byte,)), following),))
                return following
            case globs.AnyByte(classes):
                return frozenset((self.state(classes, following),))
            case globs.Repeat(classes, minimum):
                loop = self.state(classes, following)
                self.targets[loop] |= {loop}
                return frozenset((loop,)) if minimum else following | {loop}
            case globs.Sequence(parts):
                for part in reversed(parts):
                    following = self.add(part, following)
                return following
            case globs.Alternation(choices):
                return frozenset().union(*(self.add(choice, following) for choice in choices))

    def leading_to(self, objects: Iterable[int]) -> frozenset[int]:
        """Give the states from which one of ``objects`` can still be accepted."""
        wanted = frozenset(objects)
        before: dict[int, list[int]] = {}
        for state, targets in enumerate(self.targets):
            for target in targets:
                before.setdefault(target, []).append(state)
        found = {state for state, number in self.accepts.items() if number in wanted}
        pending = list(found)
        while pending:
            new = [state for state in before.get(pending.pop(), ()) if state not in found]
            found.update(new)
            pending += new
        return frozenset(found)


_A_SLASH: Final = globs.Literal(b"/")


def path_classes(objects: Sequence[PathObject], relevant: Iterable[int] | None = None) -> dict[frozenset[int], str]:
    """Give each set of objects (by their numbers) that names some path exactly, with the shortest such path.

    Of paths that no object names there is one class, the empty set. With ``relevant``, only sets that hold at least
    one of these numbers are looked for, which is cheap when they are few. Raises :class:`TooManyStatesError` when the
    product has more than :data:`MAXIMUM_STATES` states, and :class:`hauberk.policy.globs.GlobError` for a malformed
    pattern.
    """
    machine = _Machine()
    named: frozenset[int] = frozenset()
    for number, (kind, value, recursive) in enumerate(objects):
        if kind is ObjectKind.EXECNAME:
            named |= machine.add(globs.Literal(globs.to_bytes(value)), machine.end(number))
        else:
            machine.first |= machine.add(globs.object_node(kind, value, recursive=recursive), machine.end(number))
    if named:
        # one way to the last component for all names, instead of a loop for each
        above = globs.Alternation((globs.EMPTY, globs.Sequence((globs.Repeat(globs.ANY_BYTE, 1), _A_SLASH))))
        machine.first |= machine.add(globs.Sequence((_A_SLASH, above)), named)
    return _walk(machine, _START, relevant)


def text_classes(nodes: Sequence[globs.Node]) -> dict[frozenset[int], str]:
    """Give each set of trees (by their numbers) that match some text exactly, with the shortest such text.

    The text may be empty and hold every byte but NUL. Raises :class:`TooManyStatesError`.
    """
    machine = _Machine()
    for number, node in enumerate(nodes):
        machine.first |= machine.add(node, machine.end(number))
    return _walk(machine, _ANY_TEXT, None)


def name_classes(nodes: Sequence[globs.Node]) -> dict[frozenset[int], str]:
    """Give each set of trees (by their numbers) that match some domain name exactly, with the shortest such name.

    Names are in lower case and have no empty labels. Raises :class:`TooManyStatesError`.
    """
    machine = _Machine()
    for number, node in enumerate(nodes):
        machine.first |= machine.add(node, machine.end(number))
    return _walk(machine, _BEFORE_LABEL, None)


def _walk(machine: _Machine, form: int, relevant: Iterable[int] | None) -> dict[frozenset[int], str]:
    """Visit the product of a machine and of a form of texts, and collect what is accepted together."""
    useful = None if relevant is None else machine.leading_to(relevant)
    start = (machine.first, form)
    came_from: _Ways = {start: None}
    pending = deque([start])
    found: dict[frozenset[int], str] = {}
    while pending:
        current = pending.popleft()
        states, form = current
        if form in _ENDS:
            ends = machine.accepts.keys() & states
            named = frozenset(machine.accepts[state] for state in ends)
            if named not in found and (useful is None or not useful.isdisjoint(ends)):
                found[named] = _witness(came_from, current)
        for byte, following in _moves(machine, current):
            if following not in came_from and (useful is None or not useful.isdisjoint(following[0])):
                came_from[following] = (current, byte)
                pending.append(following)
        if len(came_from) > MAXIMUM_STATES:
            message = (
                f"found more than {MAXIMUM_STATES} ways in which {len(machine.accepts)} objects can overlap, expected "
                "fewer. Compare fewer policies at a time, or use fewer patterns with '**'"
            )
            raise TooManyStatesError(message)
    return found


def _moves(machine: _Machine, current: _State) -> Iterator[tuple[int, _State]]:
    """Give where each byte that matters leads to from a state of the product."""
    states, form = current
    for byte in _bytes_to_try(machine.reads, states):
        following_form = _form(form, byte)
        if following_form != _NONE:
            reached = (machine.targets[state] for state in states if byte in machine.reads[state])
            yield byte, (frozenset().union(*reached), following_form)


def _form(form: int, byte: int) -> int:
    """Follow the form of the paths that the kernel knows by one byte, that of domain names, or that of any text."""
    if form == _ANY_TEXT:
        return form
    if form in {_BEFORE_LABEL, _LABEL}:
        return _form_of_name(form, byte)
    if byte == globs.SLASH:
        return {_START: _ROOT, _NAME: _SLASH}.get(form, _NONE)
    if form == _START:
        return _NONE
    if byte == _DOT:
        return {_ROOT: _ONE_DOT, _SLASH: _ONE_DOT, _ONE_DOT: _TWO_DOTS}.get(form, _NAME)
    return _NAME


def _form_of_name(form: int, byte: int) -> int:
    if byte == _DOT:
        return _BEFORE_LABEL if form == _LABEL else _NONE
    return _LABEL if byte in NAME_BYTES else _NONE


def _bytes_to_try(reads: list[frozenset[int]], states: frozenset[int]) -> list[int]:
    """Give one byte of each set of bytes that the states do not tell apart."""
    single = {globs.SLASH, _DOT}
    several: set[frozenset[int]] = set()
    for state in states:
        classes = reads[state]
        if len(classes) == 1:
            single |= classes
        elif classes:
            several.add(classes)
    chosen = sorted(single)
    for group in _groups(frozenset(several)):
        other = next((byte for byte in group if byte not in single), None)
        if other is not None:
            chosen.append(other)
    return chosen


@functools.lru_cache(maxsize=4096)
def _groups(classes: frozenset[frozenset[int]]) -> tuple[tuple[int, ...], ...]:
    """Part all bytes by the classes they are in; within each part in the order of preference."""
    ordered = tuple(classes)
    parts: dict[tuple[bool, ...], list[int]] = {}
    for byte in _PREFERENCE:
        parts.setdefault(tuple(byte in members for members in ordered), []).append(byte)
    return tuple(tuple(part) for part in parts.values())


def _witness(came_from: _Ways, state: _State) -> str:
    octets = bytearray()
    step = came_from[state]
    while step is not None:
        state, byte = step
        octets.append(byte)
        step = came_from[state]
    return globs.to_text(bytes(reversed(octets)))
