# SPDX-License-Identifier: Apache-2.0
"""Path languages to one minimal automaton, and its comb-packed transition table.

Knows nothing of policies: it takes languages (one start state each) made of *marked* globs, and yields a minimal DFA
whose states carry an output computed from the marks of the globs that match there.

Design. Nearly all rules are literal paths, or begin with a long literal; only what follows the first wildcard can loop.
So the work is split by shape:

* The tails from the first wildcard on become an epsilon-free NFA (one *position* per byte matcher, equal positions
  shared) and are determinised by subset construction. This part may be cyclic; partition refinement minimises it.
* The literal prefixes are a trie that is never held in memory: walked in sorted order, every node is finished after its
  children, and looked up by (output, transitions) among the states that exist already. A trie node's subset of NFA
  positions is fixed by its path, so the product of trie and tails is still a tree hanging above the cyclic part. Below
  such a node everything is minimal already, hence equal signature means equal language, and the whole result is
  minimal.

Ten thousand literal paths therefore cost one hash look-up per trie node, and suffixes are shared as far as outputs
agree.

A path holds no NUL: byte 0 is a "do not care" and always follows the default.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, assert_never

from hauberk.policy.globs import Alternation, AnyByte, Literal, Node, Repeat, Sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Sequence as SequenceOf

MAXIMUM_SUBSETS: Final = 200_000
"""States of the subset construction before giving up: wildcards multiplied with each other."""
MAXIMUM_SUBSET_POSITIONS: Final = 6_000_000
"""Sum of the sizes of those states: bounds memory (8 bytes each) where a few thousand patterns overlap."""
MAXIMUM_BRANCHES: Final = 64
"""Alternatives of one glob that are spread over the trie; further ones are left to the subset construction."""

EMPTY_CELL: Final = 0xFFFFFFFF
_PATIENCE: Final = 256  # places a row is refused at before its width gives the region up
_ALPHABET = 255  # bytes 1..255
_DEAD = 0  # the empty subset


class AutomatonError(ValueError):
    """The languages do not fit the bounds of the construction; the message names the number and the bound."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """A minimal complete DFA over bytes.

    ``exceptions[s]`` lists, in ascending order of bytes, ``target << 8 | byte`` for every byte that does not lead to
    ``defaults[s]``, the most common target. States from ``acyclic_from`` on lead to smaller states only. ``starts``
    follows the languages.
    """

    outputs: list[int]
    defaults: list[int]
    exceptions: list[tuple[int, ...]]
    starts: tuple[int, ...]
    acyclic_from: int


@dataclass(frozen=True, slots=True)
class Comb:
    """Row-displacement packing: (state, byte) has the cell ``bases[state] + byte``, if ``checks`` names the state."""

    bases: list[int]
    checks: list[int]
    targets: list[int]


def build(
    languages: SequenceOf[Iterable[tuple[Node, int]]],
    output_of: Callable[[tuple[int, ...]], int],
    *,
    maximum_states: int,
) -> Automaton:
    """Build the minimal automaton of several languages in one state space.

    ``output_of`` gets the sorted marks of all globs that match at a state and returns the state's output; states are
    merged when outputs and residual languages agree. ``maximum_states`` bounds the states held.
    Raises AutomatonError when a bound is exceeded.
    """
    positions = _Positions()
    tries: list[dict[bytes, frozenset[int]]] = []
    for language in languages:
        tails: dict[bytes, _Tails] = {}
        for node, mark in language:
            _spread(tails, b"", (node,), mark, 1)
        tries.append({prefix: tail.compile(positions) for prefix, tail in tails.items()})
    subsets = _Subsets(positions)
    walks = [_Walk(subsets, trie) for trie in tries]
    for walk in walks:
        walk.discover()
    subsets.close()
    minimal = _Minimal(subsets, output_of, maximum_states)
    starts = tuple(walk.assemble(minimal) for walk in walks)
    return Automaton(minimal.outputs, minimal.defaults, minimal.exceptions, starts, minimal.cyclic)


class _Positions:
    """The NFA: a position matches one byte and leads to its ``follow`` positions; a marked one accepts."""

    def __init__(self) -> None:
        self.single: list[int] = []  # the one byte it matches, or -1
        self.wide: list[int] = []  # its class of bytes, or -1
        self.follow: list[tuple[int, ...]] = []
        self.marks: list[int] = []  # -1: does not accept
        self.classes: dict[frozenset[int], int] = {}
        self._known: dict[tuple[object, ...], int] = {}

    def accept(self, mark: int) -> frozenset[int]:
        return frozenset((self._intern(("mark", mark), None, mark),))

    def compile(self, node: Node, rest: frozenset[int]) -> frozenset[int]:
        """Return the positions a match of ``node`` followed by ``rest`` can begin with."""
        match node:
            case Literal(text):
                for byte in reversed(text):
                    rest = self._byte(frozenset((byte,)), rest)
                return rest
            case AnyByte(allowed):
                return self._byte(allowed, rest)
            case Repeat(allowed, minimum):
                loop = self._loop(allowed, rest)
                return frozenset((loop,)) if minimum else rest | {loop}
            case Sequence(parts):
                for part in reversed(parts):
                    rest = self.compile(part, rest)
                return rest
            case Alternation(options):
                return frozenset(entry for option in options for entry in self.compile(option, rest))
        assert_never(node)

    def _byte(self, allowed: frozenset[int], rest: frozenset[int]) -> frozenset[int]:
        position = self._intern(("byte", allowed, rest), allowed, -1)
        self.follow[position] = tuple(rest)
        return frozenset((position,))

    def _loop(self, allowed: frozenset[int], rest: frozenset[int]) -> int:
        position = self._intern(("loop", allowed, rest), allowed, -1)
        self.follow[position] = (*rest, position)
        return position

    def _intern(self, key: tuple[object, ...], allowed: frozenset[int] | None, mark: int) -> int:
        known = self._known.get(key)
        if known is not None:
            return known
        position = self._known[key] = len(self.single)
        single = wide = -1
        if allowed is not None:
            allowed -= {0}
            if len(allowed) == 1:
                single = next(iter(allowed))
            else:
                wide = self.classes.setdefault(allowed, len(self.classes))
        self.single.append(single)
        self.wide.append(wide)
        self.follow.append(())
        self.marks.append(mark)
        return position


class _Tails:
    """What follows one literal prefix: globs with equal beginnings share them, so that what loops there loops once."""

    def __init__(self) -> None:
        self._labels: list[tuple[int, Node] | None] = [None]  # (parent, the glob node that leads here)
        self._children: dict[tuple[int, Node], int] = {}
        self._marks: list[set[int]] = [set()]

    def add(self, nodes: tuple[Node, ...], mark: int) -> None:
        place = 0
        for node in nodes:
            key = (place, node)
            place = self._children.setdefault(key, len(self._labels))
            if place == len(self._labels):
                self._labels.append(key)
                self._marks.append(set())
        self._marks[place].add(mark)

    def compile(self, positions: _Positions) -> frozenset[int]:
        begun: list[set[int]] = [set().union(*map(positions.accept, marks)) for marks in self._marks]
        for place in range(len(self._labels) - 1, 0, -1):
            label = self._labels[place]
            if label is not None:
                parent, node = label
                begun[parent] |= positions.compile(node, frozenset(begun[place]))
        return frozenset(begun[0])


def _spread(trie: dict[bytes, _Tails], prefix: bytes, nodes: tuple[Node, ...], mark: int, branches: int) -> None:
    """Put the leading literals of ``nodes`` into the trie, and the rest into the tails attached there."""
    while nodes:
        head, rest = nodes[0], nodes[1:]
        match head:
            case Literal(text):
                prefix += text
                nodes = rest
            case Sequence(parts):
                nodes = (*parts, *rest)
            case Alternation((option,)):
                nodes = (option, *rest)
            case Alternation(options) if branches * len(options) <= MAXIMUM_BRANCHES:
                for option in options:
                    _spread(trie, prefix, (option, *rest), mark, branches * len(options))
                return
            case _:
                break
    trie.setdefault(prefix, _Tails()).add(tuple(_flat(nodes)), mark)


def _flat(nodes: Iterable[Node]) -> Iterator[Node]:
    """Give the same language as nodes that are no sequences, and literals of one byte."""
    for node in nodes:
        match node:
            case Sequence(parts):
                yield from _flat(parts)
            case Literal(text):
                yield from (Literal(text[place : place + 1]) for place in range(len(text)))
            case _:
                yield node


class _Subsets:
    """Subset construction, on demand: sets of positions as sorted tuples, numbered; number 0 is the empty set."""

    def __init__(self, positions: _Positions) -> None:
        self._positions = positions
        self.sets: list[tuple[int, ...]] = [()]
        self._known: dict[tuple[int, ...], int] = {(): _DEAD}
        self._size = 0
        self._steps: list[tuple[int, dict[int, int]] | None] = [(_DEAD, {})]
        alike: dict[tuple[bool, ...], list[int]] = {}
        for byte in range(1, 256):
            alike.setdefault(tuple(byte in allowed for allowed in positions.classes), []).append(byte)
        self._groups = list(alike.values())
        self._group_of = {byte: number for number, group in enumerate(self._groups) for byte in group}
        self._groups_of_class = [
            [number for number, group in enumerate(self._groups) if group[0] in allowed]
            for allowed in positions.classes
        ]

    def intern(self, members: Iterable[int]) -> int:
        key = tuple(sorted(members))
        known = self._known.get(key)
        if known is not None:
            return known
        number = self._known[key] = len(self.sets)
        self.sets.append(key)
        self._steps.append(None)
        self._size += len(key)
        if number >= MAXIMUM_SUBSETS or self._size > MAXIMUM_SUBSET_POSITIONS:
            message = (
                f"the wildcards of the rules multiply to {len(self.sets)} states with {self._size} positions before"
                f" minimisation, more than {MAXIMUM_SUBSETS} states or {MAXIMUM_SUBSET_POSITIONS} positions"
            )
            raise AutomatonError(message)
        return number

    def step(self, number: int) -> tuple[int, dict[int, int]]:
        """Return the default successor and, in ascending order of bytes, the successors of the other bytes."""
        known = self._steps[number]
        if known is None:
            known = self._steps[number] = self._successors(number)
        return known

    def with_attached(self, number: int, attached: Iterable[int]) -> int:
        return self.intern({*self.sets[number], *attached})

    def close(self) -> None:
        """Take up every set reachable from those known."""
        number = 0
        while number < len(self.sets):
            self.step(number)
            number += 1

    def _successors(self, number: int) -> tuple[int, dict[int, int]]:
        single, wide, follow = self._positions.single, self._positions.wide, self._positions.follow
        by_group: list[set[int]] = [set() for _ in self._groups]
        by_byte: dict[int, list[int]] = {}
        for position in self.sets[number]:
            if single[position] >= 0:
                by_byte.setdefault(single[position], []).append(position)
            elif wide[position] >= 0:
                for group in self._groups_of_class[wide[position]]:
                    by_group[group].update(follow[position])
        targets = [self.intern(members) if members else _DEAD for members in by_group]
        weights: Counter[int] = Counter()
        for target, group_bytes in zip(targets, self._groups, strict=True):
            weights[target] += len(group_bytes)
        default = max(weights, key=lambda target: (weights[target], -target))
        others = {
            byte: target
            for target, group_bytes in zip(targets, self._groups, strict=True)
            if target != default
            for byte in group_bytes
        }
        for byte, matching in by_byte.items():
            members = set(by_group[self._group_of[byte]])
            for position in matching:
                members.update(follow[position])
            others[byte] = self.intern(members)
        return default, {byte: others[byte] for byte in sorted(others) if others[byte] != default}


def _canonical(default: int, exceptions: list[int]) -> tuple[int, tuple[int, ...]]:
    """Make the most common target (the smallest of several) the default; ``exceptions`` are sorted by byte."""
    kept = tuple([item for item in exceptions if item >> 8 != default])
    if 2 * len(kept) < _ALPHABET:
        return default, kept
    weights = Counter(item >> 8 for item in kept)
    weights[default] = _ALPHABET - len(kept)
    best = max(weights, key=lambda target: (weights[target], -target))
    if best == default:
        return default, kept
    targets = {item & 0xFF: item >> 8 for item in kept}
    return best, tuple([target << 8 | byte for byte in range(1, 256) if (target := targets.get(byte, default)) != best])


class _Minimal:
    """The minimal states: those of the cyclic part at first, then whatever :meth:`state` is asked for."""

    def __init__(self, subsets: _Subsets, output_of: Callable[[tuple[int, ...]], int], maximum_states: int) -> None:
        self._maximum_states = maximum_states
        self.outputs: list[int] = []
        self.defaults: list[int] = []
        self.exceptions: list[tuple[int, ...]] = []
        self._known: dict[tuple[int, int, tuple[int, ...]], int] = {}
        marks = subsets._positions.marks  # noqa: SLF001 - one construction, two phases
        memo: dict[tuple[int, ...], int] = {}
        self.output_of_subset: list[int] = []
        for members in subsets.sets:
            key = tuple(sorted(marks[position] for position in members if marks[position] >= 0))
            if key not in memo:
                memo[key] = output_of(key)
            self.output_of_subset.append(memo[key])
        steps = [subsets.step(number) for number in range(len(subsets.sets))]
        self.state_of_subset = _refine(self.output_of_subset, steps)
        self.successors: list[tuple[int, tuple[int, ...]]] = []
        blocks = self.state_of_subset
        representatives: dict[int, int] = {}
        for number, (default, others) in enumerate(steps):
            self.successors.append(
                _canonical(blocks[default], [blocks[target] << 8 | byte for byte, target in others.items()])
            )
            representatives.setdefault(blocks[number], number)
        for block in range(len(representatives)):
            number = representatives[block]
            self._add(self.output_of_subset[number], *self.successors[number])
        self.cyclic = len(self.outputs)

    def state(self, subset: int, children: list[int]) -> int:
        """Return the state of a trie node: ``children`` (sorted by byte) over the successors of its subset."""
        default, others = self.successors[subset]
        if others:
            merged = {item & 0xFF: item for item in others}
            merged.update((item & 0xFF, item) for item in children)
            children = [merged[byte] for byte in sorted(merged)]
        if len(children) == 1 and children[0] >> 8 != default:
            exceptions: tuple[int, ...] = (children[0],)
        else:
            default, exceptions = _canonical(default, children)
        known = self._known.get((self.output_of_subset[subset], default, exceptions))
        if known is not None:
            return known
        return self._add(self.output_of_subset[subset], default, exceptions)

    def _add(self, output: int, default: int, exceptions: tuple[int, ...]) -> int:
        number = len(self.outputs)
        if number >= self._maximum_states:
            message = f"the rules need more than {self._maximum_states} states after minimisation"
            raise AutomatonError(message)
        self._known[output, default, exceptions] = number
        self.outputs.append(output)
        self.defaults.append(default)
        self.exceptions.append(exceptions)
        return number


def _refine(outputs: list[int], steps: list[tuple[int, dict[int, int]]]) -> list[int]:
    """Partition states by output and residual language; returns the block number of each state.

    Partition refinement by signatures. A state is *dirty* when the block of a successor was renumbered; clean states of
    a block agree by construction, so one of them speaks for all. The largest part keeps the number, which
    leaves each state renumbered at most log2(n) times.
    """
    predecessors: list[list[int]] = [[] for _ in outputs]
    for state, (default, others) in enumerate(steps):
        for target in {default, *others.values()}:
            predecessors[target].append(state)
    numbers: dict[int, int] = {}
    block = [numbers.setdefault(output, len(numbers)) for output in outputs]
    members: list[set[int]] = [set() for _ in numbers]
    for state, number in enumerate(block):
        members[number].add(state)
    dirty: dict[int, set[int]] = {number: set(states) for number, states in enumerate(members)}

    def signature(state: int) -> tuple[int, tuple[int, ...]]:
        default, others = steps[state]
        return _canonical(block[default], [block[target] << 8 | byte for byte, target in others.items()])

    while dirty:
        number, touched = dirty.popitem()
        states = members[number]
        parting = _parting(states, touched, signature) if len(states) > 1 else []
        for part in parting:
            states.difference_update(part)
            for state in part:
                block[state] = len(members)
            members.append(set(part))
        for state in chain.from_iterable(parting):
            for predecessor in predecessors[state]:
                dirty.setdefault(block[predecessor], set()).add(predecessor)
    return block


def _parting(states: set[int], dirty: set[int], signature: Callable[[int], object]) -> list[list[int]]:
    """Split a block by signature; returns all parts but the largest."""
    parts: dict[object, list[int]] = {}
    for state in dirty:
        parts.setdefault(signature(state), []).append(state)
    if len(dirty) < len(states):
        parts.pop(signature(next(state for state in states if state not in dirty)), None)
        leaving = sum(map(len, parts.values()))
        if all(len(part) <= len(states) - leaving for part in parts.values()):
            return list(parts.values())
        moving = set(chain.from_iterable(parts.values()))
        every = [[state for state in states if state not in moving], *parts.values()]
    else:
        every = list(parts.values())
    every.remove(max(every, key=len))
    return every


class _Walk:
    """Walks the trie of one language in sorted order without building it."""

    def __init__(self, subsets: _Subsets, trie: dict[bytes, frozenset[int]]) -> None:
        self._subsets = subsets
        self._literals = sorted(trie)
        self._trie = trie

    def _root(self) -> int:
        return self._subsets.intern(self._trie.get(b"", ()))

    def _descend(self, subset: int, literal: bytes, common: int) -> list[int]:
        """Return the subsets of the nodes along ``literal`` after its first ``common`` bytes."""
        path = []
        for byte in literal[common:]:
            if subset != _DEAD:
                default, others = self._subsets.step(subset)
                subset = others.get(byte, default)
            path.append(subset)
        if path:
            path[-1] = self._subsets.with_attached(subset, self._trie[literal])
        return path

    def discover(self) -> None:
        """Make the subsets of all trie nodes known."""
        stack, previous = [self._root()], b""
        for literal in self._literals:
            common = _common_prefix(previous, literal)
            del stack[common + 1 :]
            stack += self._descend(stack[-1], literal, common)
            previous = literal

    def assemble(self, minimal: _Minimal) -> int:
        """Add the trie's states, children before parents; returns the start state."""
        stack, previous = [self._root()], b""
        children: list[list[int]] = [[]]

        def finish(depth: int) -> None:
            while len(stack) > depth:
                subset, own = stack.pop(), children.pop()
                state = minimal.state(subset, own) if own else minimal.state_of_subset[subset]
                children[-1].append(state << 8 | previous[len(stack) - 1])

        for literal in self._literals:
            common = _common_prefix(previous, literal)
            finish(common + 1)
            path = self._descend(stack[-1], literal, common)
            stack += path
            children += [[] for _ in path]
            previous = literal
        finish(1)
        return minimal.state(stack[0], children[0]) if children[0] else minimal.state_of_subset[stack[0]]


def _common_prefix(first: bytes, second: bytes) -> int:
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def pack(exceptions: SequenceOf[tuple[int, ...]]) -> Comb:  # noqa: C901 - one loop, kept free of calls
    """Displace rows of ``exceptions`` (as in :class:`Automaton`) into each other, fullest first, lowest place first.

    For one pattern of bytes the first fit only ever moves up, so each pattern goes on where it last succeeded; after
    many misses in a row all patterns of that width give the crowded region up, and rows of one byte fill what is left.
    There are cells for every byte behind every base, so that a reader in the kernel needs no bound of its own.
    """
    bases = [0] * len(exceptions)
    checks: list[int] = []
    targets: list[int] = []
    used = bytearray()
    pattern_from: dict[bytes, int] = {}
    width_from: dict[int, int] = {}
    order = sorted(range(len(exceptions)), key=lambda state: (-len(exceptions[state]), state))
    for state in order:
        row = exceptions[state]
        if not row:
            break
        pattern = bytes([item & 0xFF for item in row])
        width = len(pattern)
        first = pattern[0]
        base = max(pattern_from.get(pattern, 0), width_from.get(width, 0) if width > 1 else 0)
        misses = 0
        while True:
            if base + 256 > len(used):
                used += bytes(max(4096, base + 256 - len(used)))
            place = used.find(0, base + first)
            if place < 0:
                base = len(used)
                continue
            base = place - first
            if base + 256 > len(used):
                continue
            if width == 1 or not any([used[base + byte] for byte in pattern]):  # noqa: C419 - twice as fast
                break
            base += 1
            misses += 1
        if misses > _PATIENCE:
            width_from[width] = max(width_from.get(width, 0), base - 64)
        pattern_from[pattern] = base + 1
        bases[state] = base
        if base + 256 > len(checks):
            grown = len(used) - len(checks)
            checks += [EMPTY_CELL] * grown
            targets += [0] * grown
        for item in row:
            place = base + (item & 0xFF)
            used[place] = 1
            checks[place] = state
            targets[place] = item >> 8
    length = max(bases, default=0) + 256
    checks += [EMPTY_CELL] * (length - len(checks))
    targets += [0] * (length - len(targets))
    del checks[length:], targets[length:]
    return Comb(bases, checks, targets)
