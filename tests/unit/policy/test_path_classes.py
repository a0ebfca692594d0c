# SPDX-License-Identifier: Apache-2.0
"""Every way in which objects name paths is found, and nothing that no path is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.policy import globs, path_classes, selectors
from hauberk.policy.path_classes import PathObject, TooManyStatesError
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, Section

COMPONENTS = ("a", "b", "ab", "a.b", ".a")
ALL_PATHS = [
    "/",
    *(
        "/" + "/".join(parts)
        for length in (1, 2, 3)
        for parts in itertools.product((*COMPONENTS, "c", "x", "ba"), repeat=length)
    ),
]

path = st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
piece = st.sampled_from(("a", "b", "*", "**", "?", "/", "{a,b/}", "[ab]", "[^a]", "."))
pattern = st.lists(piece, max_size=4).map(lambda pieces: "/" + "".join(pieces))
objects = st.lists(
    st.one_of(
        st.builds(PathObject, st.just(ObjectKind.PATH), path, st.just(False)),  # noqa: FBT003 - builds' arguments
        st.builds(PathObject, st.just(ObjectKind.DIRECTORY), path.map(lambda text: text + "/"), st.booleans()),
        st.builds(PathObject, st.just(ObjectKind.DIRECTORY), st.just("/"), st.booleans()),
        st.builds(PathObject, st.just(ObjectKind.PATTERN), pattern, st.just(False)),  # noqa: FBT003
        st.builds(PathObject, st.just(ObjectKind.EXECNAME), st.sampled_from(COMPONENTS), st.just(False)),  # noqa: FBT003
    ),
    max_size=5,
)


def naming(some: list[PathObject], name: str) -> frozenset[int]:
    """Give the numbers of the objects that name a path, by the reference matcher."""
    origin = Origin("p", "f")
    return frozenset(
        number
        for number, (kind, value, recursive) in enumerate(some)
        if globs.matches(Rule(Section.FILE, kind, value, Action.BLOCK, origin, recursive=recursive), name)
    )


@given(objects)
@settings(max_examples=150)
def test_each_set_is_found_with_a_path_that_it_names(some: list[PathObject]) -> None:
    found = path_classes.path_classes(some)
    for numbers, witness in found.items():
        assert naming(some, witness) == numbers
        assert witness == "/" or all(part not in ("", ".", "..") for part in witness[1:].split("/"))
    assert {naming(some, name) for name in ALL_PATHS} <= found.keys()


@given(objects, st.data())
@settings(max_examples=100)
def test_only_what_is_relevant_is_looked_for(some: list[PathObject], data: st.DataObject) -> None:
    relevant = data.draw(st.sets(st.integers(0, max(len(some) - 1, 0))))
    everything = path_classes.path_classes(some)
    found = path_classes.path_classes(some, relevant)
    assert found.keys() == {numbers for numbers in everything if numbers & relevant}
    assert all(naming(some, witness) == numbers for numbers, witness in found.items())


def test_witnesses_are_short_and_readable() -> None:
    some = [
        PathObject(ObjectKind.DIRECTORY, "/etc/", recursive=True),
        PathObject(ObjectKind.EXECNAME, "sh", recursive=False),
        PathObject(ObjectKind.PATH, "/etc/shadow", recursive=False),
    ]
    assert path_classes.path_classes(some) == {
        frozenset(): "/",
        frozenset({0}): "/etc",
        frozenset({1}): "/sh",
        frozenset({0, 1}): "/etc/sh",
        frozenset({0, 2}): "/etc/shadow",
    }


def test_bytes_that_are_no_text_are_witnesses_too() -> None:
    some = [PathObject(ObjectKind.PATTERN, "/[^\x01-\x7f]", recursive=False)]
    witness = path_classes.path_classes(some)[frozenset({0})]
    assert naming(some, witness) == {0}
    assert globs.to_bytes(witness)[1] >= 128


def test_what_grows_without_bound_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_classes, "MAXIMUM_STATES", 500)
    some = [PathObject(ObjectKind.PATTERN, f"/**a{'?' * 12}", recursive=False)]
    with pytest.raises(TooManyStatesError, match=r"more than 500 ways in which 1 objects can overlap, expected fewer"):
        path_classes.path_classes(some)


@given(st.lists(st.sampled_from(("a", "ab", "[a-b]*", ".*", "a|b", "web-.+", "(a|ba)b?")), max_size=4))
@settings(max_examples=60)
def test_texts_are_parted_by_expressions_too(expressions: list[str]) -> None:
    nodes = [selectors.parse_expression(expression) for expression in expressions]

    def matching(name: str) -> frozenset[int]:
        octets = globs.to_bytes(name)
        return frozenset(number for number, node in enumerate(nodes) if len(octets) in globs.simulate(node, octets))

    found = path_classes.text_classes(nodes)
    assert all(matching(witness) == numbers for numbers, witness in found.items())
    texts = ["".join(letters) for length in range(4) for letters in itertools.product("abc", repeat=length)]
    assert {matching(name) for name in (*texts, "web-", "web-a")} <= found.keys()
