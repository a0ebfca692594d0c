# SPDX-License-Identifier: Apache-2.0
"""The automaton against the reference matcher, its minimality, and the packing of its transitions."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.bpf_lsm import automaton
from guest_agent.engines.bpf_lsm.automaton import Automaton, AutomatonError, build, pack
from hauberk.policy.globs import Literal, Node, parse, simulate

PATTERNS = st.lists(
    st.sampled_from(
        (
            "/",
            "a",
            "b",
            "ab",
            "c",
            "*",
            "**",
            "?",
            "[ab]",
            "[^a]",
            "{a,b}",
            "{,c}",
            "{a*,/b}",
            "{a,{b,**}}",
            "{b}",
            "/**/",
        )
    ),
    min_size=1,
    max_size=7,
).map(lambda parts: "/" + "".join(parts))
WORDS = [b"/" + bytes(word) for length in range(6) for word in product(b"/abc", repeat=length)]


class Marks:
    """Numbers each set of marks, so that a test can see which globs match at a state."""

    def __init__(self) -> None:
        """Begin without any."""
        self.sets: list[tuple[int, ...]] = []

    def __call__(self, marks: tuple[int, ...]) -> int:
        """Give the number of a set."""
        if marks not in self.sets:
            self.sets.append(marks)
        return self.sets.index(marks)


def step(machine: Automaton, state: int, byte: int) -> int:
    """Follow one transition."""
    for item in machine.exceptions[state]:
        if item & 0xFF == byte:
            return item >> 8
    return machine.defaults[state]


def state_after(machine: Automaton, start: int, word: bytes) -> int:
    """Follow a word."""
    state = start
    for byte in word:
        state = step(machine, state, byte)
    return state


def reachable(machine: Automaton) -> list[int]:
    """List all states a word leads to."""
    found = list(dict.fromkeys(machine.starts))
    for state in found:
        found += {machine.defaults[state], *(item >> 8 for item in machine.exceptions[state])} - set(found)
    return found


def distinguishable_classes(machine: Automaton) -> int:
    """Count the classes of equivalent states by plain iteration over the whole alphabet."""
    states = reachable(machine)
    rows = {state: [step(machine, state, byte) for byte in range(1, 256)] for state in states}
    block = {state: machine.outputs[state] for state in states}
    while True:
        names: dict[tuple[int, tuple[int, ...]], int] = {}
        refined = {
            state: names.setdefault((block[state], tuple(block[target] for target in rows[state])), len(names))
            for state in states
        }
        if len(names) == len(set(block.values())):
            return len(names)
        block = refined


@given(st.lists(PATTERNS, min_size=1, max_size=5), st.lists(PATTERNS, max_size=2))
def test_states_carry_exactly_the_globs_that_match(first: list[str], second: list[str]) -> None:
    """On every short word over a small alphabet, in both languages, the marks are those of the reference matcher."""
    marks = Marks()
    languages = [[(parse(pattern), mark) for mark, pattern in enumerate(patterns)] for patterns in (first, second)]
    machine = build(languages, marks, maximum_states=100_000)
    for language, start in zip(languages, machine.starts, strict=True):
        for word in WORDS[::3]:
            expected = tuple(mark for node, mark in language if len(word) in simulate(node, word))
            assert marks.sets[machine.outputs[state_after(machine, start, word)]] == expected


@given(st.lists(PATTERNS, min_size=1, max_size=4), st.lists(PATTERNS, max_size=2))
def test_no_two_states_are_equivalent(first: list[str], second: list[str]) -> None:
    """Equal residual behaviour is one state, across both languages and both halves of the construction."""
    languages: list[list[tuple[Node, int]]] = [
        [(parse(pattern), mark % 2) for mark, pattern in enumerate(patterns)] for patterns in (first, second)
    ]
    machine = build(languages, Marks(), maximum_states=100_000)
    assert distinguishable_classes(machine) == len(reachable(machine))


@given(st.lists(PATTERNS, min_size=1, max_size=5))
def test_the_default_is_the_most_common_target(patterns: list[str]) -> None:
    """Exceptions are sorted, never repeat the default, and no other target is more common."""
    machine = build([[(parse(pattern), 0) for pattern in patterns]], Marks(), maximum_states=100_000)
    for state in reachable(machine):
        exceptions = machine.exceptions[state]
        octets = [item & 0xFF for item in exceptions]
        assert octets == sorted(set(octets))
        targets = [item >> 8 for item in exceptions]
        assert machine.defaults[state] not in targets
        assert all(targets.count(target) <= 255 - len(targets) for target in targets)


def test_literals_share_prefixes_and_suffixes() -> None:
    """Four paths that agree in both ends need one chain of states and the dead one."""
    words = [b"/usr/bin/a.conf", b"/usr/bin/b.conf", b"/usr/lib/a.conf", b"/usr/lib/b.conf"]
    machine = build([[(Literal(word), 0) for word in words]], Marks(), maximum_states=1000)
    # One state a length 0 to 15, a second one while "bin" and "lib" differ (2 of them), and the dead state.
    assert len(reachable(machine)) == 16 + 2 + 1


def test_states_past_the_cyclic_part_lead_downwards() -> None:
    """What the reader of ``acyclic_from`` relies on."""
    machine = build(
        [[(parse("/a/b*/c"), 0), (Literal(b"/a/b"), 1), (Literal(b"/x/y"), 1)]], Marks(), maximum_states=1000
    )
    assert machine.acyclic_from < len(machine.outputs)
    for state in range(machine.acyclic_from, len(machine.outputs)):
        assert all(
            target < state for target in (machine.defaults[state], *(item >> 8 for item in machine.exceptions[state]))
        )


def test_multiplying_wildcards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern whose automaton has 2^n states ends in an error that gives number and bound."""
    monkeypatch.setattr(automaton, "MAXIMUM_SUBSETS", 3000)
    with pytest.raises(AutomatonError, match=r"3001 states .* more than 3000 states"):
        build([[(parse("/**a" + "[ab]" * 14), 0)]], Marks(), maximum_states=1_000_000)


def test_sizes_of_subsets_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few states of many positions are refused as well."""
    monkeypatch.setattr(automaton, "MAXIMUM_SUBSET_POSITIONS", 500)
    with pytest.raises(AutomatonError, match="or 500 positions"):
        build([[(parse(f"/**{letter}*{letter}"), 0) for letter in "abcdefghijkl"]], Marks(), maximum_states=1_000_000)


def test_minimal_states_are_bounded() -> None:
    """The third bound counts what is kept."""
    with pytest.raises(AutomatonError, match="more than 10 states after minimisation"):
        build([[(Literal(b"/a/rather/long/path"), 0)]], Marks(), maximum_states=10)


def test_braces_beyond_the_spreading_bound_mean_the_same() -> None:
    """Alternatives are spread over the trie up to a bound, and left to the subset construction after it."""
    pattern = "/" + "{a,b,c}" * 6
    marks = Marks()
    machine = build([[(parse(pattern), 0)]], marks, maximum_states=1000)
    for word in (b"/abcabc", b"/aaaaaa", b"/cccccc"):
        assert marks.sets[machine.outputs[state_after(machine, machine.starts[0], word)]] == (0,)
    for word in (b"/abcab", b"/abcabca", b"/abcabd", b"/abca/c"):
        assert marks.sets[machine.outputs[state_after(machine, machine.starts[0], word)]] == ()


def test_long_chains_of_braces_do_not_recurse() -> None:
    """A thousand groups in a row are within what a pattern of 4096 bytes may hold."""
    marks = Marks()
    machine = build([[(parse("/" + "{a}" * 600 + "{b,c}" * 450), 0)]], marks, maximum_states=10_000)
    word = b"/" + b"a" * 600 + b"bc" * 225
    assert marks.sets[machine.outputs[state_after(machine, machine.starts[0], word)]] == (0,)
    assert marks.sets[machine.outputs[state_after(machine, machine.starts[0], word[:-1])]] == ()


@given(st.lists(st.dictionaries(st.integers(1, 255), st.integers(0, 50), max_size=40), max_size=60))
def test_packed_rows_are_found_and_only_they(rows: list[dict[int, int]]) -> None:
    """Each (state, byte) finds its own cell or none; no two rows share one."""
    comb = pack([tuple(target << 8 | byte for byte, target in sorted(row.items())) for row in rows])
    assert len(comb.checks) == len(comb.targets)
    for state, row in enumerate(rows):
        for byte in range(256):
            cell = comb.bases[state] + byte
            found = comb.targets[cell] if comb.checks[cell] == state else None
            assert found == row.get(byte)


def test_rows_fill_each_others_gaps() -> None:
    """Many rows of one byte pack without gaps once the first byte's offset is passed."""
    comb = pack([(7 << 8 | 65,)] * 1000)
    assert max(comb.bases) == 999
    assert comb.checks[:65] == [automaton.EMPTY_CELL] * 65
    assert automaton.EMPTY_CELL not in comb.checks[65 : 65 + 1000]
    assert set(comb.checks[65 + 1000 :]) == {automaton.EMPTY_CELL}
