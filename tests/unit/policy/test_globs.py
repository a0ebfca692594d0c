# SPDX-License-Identifier: Apache-2.0
"""Globs: what matches, what is refused and where, and two matchers held against each other."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import globs
from hauberk.policy.index import RuleIndex
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, Section


def rule(kind: ObjectKind, value: str, *, recursive: bool = False) -> Rule:
    return Rule(Section.FILE, kind, value, Action.BLOCK, Origin("p", "f"), recursive=recursive)


def test_the_end_of_each_brace_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    look = globs._Parser.closing_brace  # noqa: SLF001 - counted where nobody else looks

    def counted(parser: globs._Parser, position: int) -> int:
        looked.append(position)
        return look(parser, position)

    monkeypatch.setattr(globs._Parser, "closing_brace", counted)  # noqa: SLF001
    globs.parse("/{*,{*,*,*,{*,b}},*}/{*,*}")
    assert len(looked) == 4


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/etc/*", "/etc/passwd", True),
        ("/etc/*", "/etc", False),
        ("/etc/*", "/etc/", False),  # a whole component has at least one byte
        ("/etc/*", "/etc/ssl/key", False),
        ("/etc/*", "/etc/.hidden", True),
        ("/etc/p*", "/etc/p", True),
        ("/etc/p*", "/etc/passwd", True),
        ("/etc/*hado?", "/etc/shadow", True),
        ("/etc/*hado?", "/etc/shado", False),
        ("/a/*/c", "/a/b/c", True),
        ("/a/*/c", "/a//c", False),
        ("/a/*/c", "/a/b/b/c", False),
        ("/a/**", "/a", False),
        ("/a/**", "/a/", False),
        ("/a/**", "/a/b/c", True),
        ("/a**", "/a", True),
        ("/a**", "/a/b", True),
        ("/lib/**.so", "/lib/x.so", True),
        ("/lib/**.so", "/lib/x86/y.so", True),
        ("/lib/**.so", "/lib/.so", False),
        ("/lib/***.so", "/lib/a/b.so", True),
        ("**", "/any/thing", True),
        ("/**/*.conf", "/etc/nginx/nginx.conf", True),
        ("/**/*.conf", "/x.conf", False),
        ("/?", "/", False),
        ("/a?c", "/a/c", False),
        ("/a[bc]d", "/abd", True),
        ("/a[b-d]e", "/ace", True),
        ("/a[b-d]e", "/aee", False),
        ("/a[^b]c", "/axc", True),
        ("/a[^b]c", "/abc", False),
        ("/a[^b]c", "/a/c", False),
        ("/a[+-9]c", "/a/c", False),  # the range spans '/', which no class matches
        ("/a[+-9]c", "/a.c", True),
        ("/a[b-]c", "/a-c", True),
        (r"/a[\]]c", "/a]c", True),
        ("/{bin,usr/bin}/sh", "/usr/bin/sh", True),
        ("/{bin,usr/bin}/sh", "/bin/sh", True),
        ("/{bin,usr/bin}/sh", "/sbin/sh", False),
        ("/x{,.gz}", "/x", True),
        ("/x{,.gz}", "/x.gz", True),
        ("/x{a{b,c},d}", "/xac", True),
        ("/x{a{b,c},d}", "/xd", True),
        ("/x{a{b,c},d}", "/xa", False),
        ("/x/{*,y}/z", "/x//z", False),
        ("/x/{*,y}/z", "/x/q/z", True),
        ("/x{/*,}", "/x/", False),
        ("/x{/*,}", "/x", True),
        ("/x{/*,\\{}", "/x{", True),
        ("/x/{*,{a,b},\\}}/z", "/x//z", False),
        ("/x/{*,{a,b},\\}}c", "/x/c", True),
        ("/x/{y,{a,*}}/z", "/x//z", False),
        ("/x/{*,[}]}/z", "/x//z", False),  # a brace in a class closes nothing
        ("/x/{*,[\\]}]}/z", "/x//z", False),
        ("/x/*,b", "/x/,b", True),  # not a whole component
        (r"/a\*b", "/a*b", True),
        (r"/a\*b", "/axb", False),
        (r"/a\\b", "/a\\b", True),
        ("/a,b", "/a,b", True),
        ("/a-b", "/a-b", True),
        ("/ä?", "/äx", True),
        ("/?", "/ä", False),  # one byte, and this letter has two
        ("/??", "/ä", True),
        ("/a*", "/a\udcff", True),  # not UTF-8
        ("/a\nb*", "/a\nbc", True),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: str, expected: bool) -> None:  # noqa: FBT001
    assert globs.matches(rule(ObjectKind.PATTERN, pattern), path) is expected
    assert (len(globs.to_bytes(path)) in globs.simulate(globs.parse(pattern), globs.to_bytes(path))) is expected
    assert bool(re.fullmatch(globs.to_regex(globs.parse(pattern)), globs.to_bytes(path), re.DOTALL)) is expected


@pytest.mark.parametrize(
    ("pattern", "position", "words"),
    [
        ("/a{b", 2, "'{' without '}'"),
        ("/a{b,{c}", 2, "'{' without '}'"),
        ("/a}b", 2, "'}' without '{'"),
        ("/a[b", 2, "'[' without ']'"),
        ("/a]", 2, "']' without '['"),
        ("/a[]", 2, "empty class"),
        ("/a[z-a]", 2, "backwards"),
        ("/a[!b]", 3, "[^"),
        ("/a[/]", 3, "'/'"),
        ("/a[ä]", 3, "several bytes"),
        ("/a\\", 2, "at the end"),
        ("/a\0", 2, "NUL"),
        ("/" + "{" * 17, 17, "nested"),
        ("/" + "a" * 4096, 4096, "4096 bytes"),
        ("/[^\x01-\x7f" + "]", None, ""),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_place(pattern: str, position: int | None, words: str) -> None:
    if position is None:
        assert globs.parse(pattern) is not None
        return
    with pytest.raises(globs.GlobError) as caught:
        globs.parse(pattern)
    assert caught.value.position == position
    assert words in caught.value.message


def test_a_class_of_nothing_but_a_slash_is_refused() -> None:
    with pytest.raises(globs.GlobError, match="matches nothing"):
        globs.parse(r"/a[\/]")


@pytest.mark.parametrize(
    ("kind", "value", "recursive", "path", "expected"),
    [
        (ObjectKind.PATH, "/a/b", False, "/a/b", True),
        (ObjectKind.PATH, "/a/b", False, "/a/b/c", False),
        (ObjectKind.PATH, "/a/*", False, "/a/b", False),
        (ObjectKind.DIRECTORY, "/a/", False, "/a", True),
        (ObjectKind.DIRECTORY, "/a/", False, "/a/x", True),
        (ObjectKind.DIRECTORY, "/a/", False, "/a/x/y", False),
        (ObjectKind.DIRECTORY, "/a/", False, "/ab", False),
        (ObjectKind.DIRECTORY, "/a/", True, "/a", True),
        (ObjectKind.DIRECTORY, "/a/", True, "/a/x/y", True),
        (ObjectKind.DIRECTORY, "/a/", True, "/ab/x", False),
        (ObjectKind.DIRECTORY, "/", False, "/", True),
        (ObjectKind.DIRECTORY, "/", False, "/x", True),
        (ObjectKind.DIRECTORY, "/", False, "/x/y", False),
        (ObjectKind.DIRECTORY, "/", True, "/", True),
        (ObjectKind.DIRECTORY, "/", True, "/x/y", True),
        (ObjectKind.EXECNAME, "sh", False, "/sh", True),
        (ObjectKind.EXECNAME, "sh", False, "/usr/bin/sh", True),
        (ObjectKind.EXECNAME, "sh", False, "/usr/bin/bash", False),
        (ObjectKind.EXECNAME, "sh", False, "/sh/x", False),
    ],
)
def test_what_the_other_kinds_match(kind: ObjectKind, value: str, recursive: bool, path: str, expected: bool) -> None:  # noqa: FBT001
    one = rule(kind, value, recursive=recursive)
    octets = path.encode()
    assert globs.matches(one, path) is expected
    assert (len(octets) in globs.simulate(globs.rule_object(one), octets)) is expected
    assert RuleIndex([one]).matching(path) == ((one,) if expected else ())


PIECES = st.sampled_from(
    ["/", "a", "b", "ab", "*", "**", "?", "[ab]", "[^a]", "{a,b}", "{,/a}", "{b*,{a,}}", "\\*", "ä", "{*,b}", "/**/"]
)
PATTERNS = st.lists(PIECES, max_size=7).map(lambda pieces: "/" + "".join(pieces))
PATHS = st.text(alphabet="/ab*ä\udcff", max_size=9).map(lambda text: "/" + text)


@given(PATTERNS, PATHS)
def test_the_matcher_without_backtracking_agrees_with_regular_expressions(pattern: str, path: str) -> None:
    node = globs.parse(pattern)
    octets = globs.to_bytes(path)
    by_regex = re.fullmatch(globs.to_regex(node), octets, re.DOTALL) is not None
    assert (len(octets) in globs.simulate(node, octets)) is by_regex
    assert globs.matches(rule(ObjectKind.PATTERN, pattern), octets) is by_regex


@given(st.text(alphabet="/a*?[]{}\\,-^!ä\0", max_size=12))
def test_any_text_is_a_pattern_or_refused_with_a_position(text: str) -> None:
    error: globs.GlobError | None = None
    try:
        globs.parse(text)
    except globs.GlobError as caught:
        error = caught
    assert error is None or 0 <= error.position <= len(text)


@given(st.text(alphabet="/ab*?[]{}\\,-^", max_size=12).map(lambda text: "/" + text))
def test_an_escaped_path_matches_itself_alone(path: str) -> None:
    assert globs.parse(globs.escape(path)) == globs.Literal(path.encode())


def test_a_hostile_pattern_is_matched_in_linear_time() -> None:
    """A backtracking matcher would need longer than any test runs."""
    many = rule(ObjectKind.PATTERN, "/" + "{a,aa}" * 200 + "b")
    assert not globs.matches(many, "/" + "a" * 300)
    stars = rule(ObjectKind.PATTERN, "/" + "**a" * 30)
    assert not globs.matches(stars, "/" + "a" * 2000 + "b")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/usr/lib/*.so", ("/usr/lib", "*.so")),
        ("/usr/lib/a*/b", ("/usr/lib", "a*/b")),
        ("/*", ("/", "*")),
        ("**", ("", "**")),
        ("{/a,/b}/c", ("", "{/a,/b}/c")),
        (r"/a\*/b?", ("/a*", "b?")),
        ("/etc/passwd", ("/etc", "passwd")),
    ],
)
def test_the_directory_before_the_first_wildcard(pattern: str, expected: tuple[str, str]) -> None:
    assert globs.literal_directory(pattern) == expected


COMPONENTS = st.sampled_from(["a", "b", "ab", "sh"])
DIRECTORIES = st.lists(COMPONENTS, max_size=3).map(lambda names: "/" + "".join(name + "/" for name in names))
CANONICAL = st.lists(COMPONENTS, max_size=4).map(lambda names: "/" + "/".join(names))
RULES = st.one_of(
    CANONICAL.filter(lambda path: path != "/").map(lambda path: rule(ObjectKind.PATH, path)),
    st.builds(lambda path, deep: rule(ObjectKind.DIRECTORY, path, recursive=deep), DIRECTORIES, st.booleans()),
    COMPONENTS.map(lambda name: rule(ObjectKind.EXECNAME, name)),
    PATTERNS.map(lambda pattern: rule(ObjectKind.PATTERN, pattern)),
)


@given(st.lists(RULES, max_size=8), CANONICAL)
def test_the_index_finds_exactly_what_matches(rules: list[Rule], path: str) -> None:
    assert RuleIndex(rules).matching(path) == tuple(one for one in rules if globs.matches(one, path))
