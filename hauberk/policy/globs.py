# SPDX-License-Identifier: Apache-2.0
"""AppArmor globs, and every other way a rule names its object, as one small syntax tree over bytes.

The tree is the single meaning of "this rule matches this path". The automaton that runs in the kernel is compiled
from it and the reference matcher (:func:`matches`) interprets it; so the two can be held against each other. It works
on bytes, as the kernel does: a path need not be valid UTF-8, and ``?`` is one byte.

Repetition is only ever applied to a set of bytes, never to a group: a pattern is at most as long as its text, and
matching by a set of positions (:func:`simulate`) is linear in the path. Python's backtracking engine is used where it
cannot blow up.

Where a construct could mean two things to people coming from shells, regular expressions or AppArmor (``[!a]``, a
stray ``]``), it is refused with its position instead of being guessed at.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from hauberk.errors import HauberkError
from hauberk.policy.rules import PATH_KINDS, ObjectKind, Rule

SLASH = ord("/")
ANY_BYTE = frozenset(range(1, 256))
"""Every byte a path can hold; NUL ends a path and is never matched."""
NOT_SLASH = ANY_BYTE - {SLASH}

MAXIMUM_LENGTH = 4096
"""Longest pattern in bytes: PATH_MAX, since nothing longer names a path."""
MAXIMUM_DEPTH = 16
"""Deepest nesting of braces."""
_BACKTRACKING_LIMIT = 3
"""Most repetitions and alternations a pattern may have to be given to Python's backtracking engine."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly these bytes."""

    value: bytes


@dataclass(frozen=True, slots=True)
class AnyByte:
    """One byte out of ``classes``."""

    classes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``minimum`` (0 or 1) or more bytes, each out of ``classes``."""

    classes: frozenset[int]
    minimum: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """All parts one after the other; without parts, the empty string."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    """Any one of the choices."""

    choices: tuple[Node, ...]


Node = Literal | AnyByte | Repeat | Sequence | Alternation

EMPTY = Sequence(())


class GlobError(HauberkError):
    """A pattern cannot be read. ``position`` is the index of the offending character in the pattern, from 0."""

    def __init__(self, position: int, message: str) -> None:
        """Take the place and what is wrong there."""
        self.position = position
        self.message = message
        super().__init__(f"at character {position + 1}: {message}")


def to_bytes(path: str) -> bytes:
    """Give the kernel's bytes of a path (UTF-8, undecodable bytes as surrogates), independent of the locale."""
    return path.encode("utf-8", "surrogateescape")


def to_text(path: bytes) -> str:
    """Give the inverse of :func:`to_bytes`."""
    return path.decode("utf-8", "surrogateescape")


class _Parser:
    """Recursive descent over the characters of one pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.position = 0
        self.closings: list[int] = []  # where the braces that are open end, the innermost last

    def parse(self) -> Node:
        node = self.sequence(depth=0, slash_before=False)
        if self.position < len(self.pattern):
            raise GlobError(self.position, "found '}' without '{'; write '\\}' for a brace in a name")
        return node

    def sequence(self, *, depth: int, slash_before: bool) -> Node:
        parts: list[Node] = []
        literal = bytearray()

        def flush() -> None:
            if literal:
                parts.append(Literal(bytes(literal)))
                literal.clear()

        while self.position < len(self.pattern):
            character = self.pattern[self.position]
            if character == "}" or (character == "," and depth):
                break
            after_slash = self.pattern[self.position - 1] == "/" if parts or literal else slash_before
            if character == "*":
                flush()
                parts.append(self.stars(after_slash=after_slash, depth=depth))
            elif character == "?":
                flush()
                self.position += 1
                parts.append(AnyByte(NOT_SLASH))
            elif character == "[":
                flush()
                parts.append(AnyByte(self.byte_class()))
            elif character == "{":
                flush()
                parts.append(self.alternation(depth=depth + 1, slash_before=after_slash))
            elif character == "]":
                raise GlobError(self.position, "found ']' without '['; write '\\]' for a bracket in a name")
            else:
                literal += to_bytes(self.literal_character())
        flush()
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def literal_character(self) -> str:
        character = self.pattern[self.position]
        if character == "\0":
            raise GlobError(self.position, "found a NUL character; no path holds one, remove it")
        if character != "\\":
            self.position += 1
            return character
        if self.position + 1 >= len(self.pattern):
            raise GlobError(self.position, "found '\\' at the end; write '\\\\' for a backslash in a name")
        self.position += 2
        return self.pattern[self.position - 1]

    def stars(self, *, after_slash: bool, depth: int) -> Node:
        start = self.position
        while self.position < len(self.pattern) and self.pattern[self.position] == "*":
            self.position += 1
        if self.position - start > 1:
            return Repeat(ANY_BYTE, 1 if after_slash else 0)
        whole_component = after_slash and self.component_ends(self.position, depth)
        return Repeat(NOT_SLASH, 1 if whole_component else 0)

    def component_ends(self, position: int, depth: int) -> bool:
        """Whether a path component ends at ``position``, looking out of the ``depth`` braces it stands in."""
        while depth and position < len(self.pattern) and self.pattern[position] in ",}":
            depth -= 1
            position = self.closings[depth] + 1
        return position >= len(self.pattern) or self.pattern[position] == "/"

    def closing_brace(self, position: int) -> int:
        """Find the brace that closes the alternation ``position`` is in (not in a nested one or in a class)."""
        depth = 0
        while position < len(self.pattern):
            character = self.pattern[position]
            if character == "\\":
                position += 1
            elif character == "[":
                while position < len(self.pattern) and self.pattern[position] != "]":
                    position += 1 + (self.pattern[position] == "\\")
            elif character == "{":
                depth += 1
            elif character == "}":
                if depth == 0:
                    break
                depth -= 1
            position += 1
        return position

    def alternation(self, *, depth: int, slash_before: bool) -> Node:
        start = self.position
        if depth > MAXIMUM_DEPTH:
            raise GlobError(start, f"found braces nested more than {MAXIMUM_DEPTH} deep; write several rules instead")
        self.closings.append(self.closing_brace(start + 1))
        choices: list[Node] = []
        while True:
            self.position += 1  # the opening brace or a comma
            choices.append(self.sequence(depth=depth, slash_before=slash_before))
            if self.position >= len(self.pattern):
                raise GlobError(start, "found '{' without '}'; close it, or write '\\{' for a brace in a name")
            if self.pattern[self.position] == "}":
                self.position += 1
                self.closings.pop()
                return Alternation(tuple(choices))

    def byte_class(self) -> frozenset[int]:
        start = self.position
        self.position += 1
        negated = self.pattern[self.position : self.position + 1] == "^"
        if negated:
            self.position += 1
        elif self.pattern[self.position : self.position + 1] == "!":
            raise GlobError(self.position, "found '[!'; write '[^' to negate a class, or '[\\!' for the character")
        members: set[int] = set()
        while self.position < len(self.pattern) and self.pattern[self.position] != "]":
            first = self.class_member()
            last = first
            following = self.pattern[self.position : self.position + 2]
            if following.startswith("-") and following not in ("-", "-]"):
                self.position += 1
                last = self.class_member()
                if last < first:
                    raise GlobError(
                        start, f"found the range {chr(first)}-{chr(last)}, which runs backwards; swap its ends"
                    )
            members.update(range(first, last + 1))
        if self.position >= len(self.pattern):
            raise GlobError(start, "found '[' without ']'; close it, or write '\\[' for a bracket in a name")
        self.position += 1
        if not members:
            raise GlobError(start, "found an empty class; name at least one character in it")
        result = NOT_SLASH - members if negated else NOT_SLASH & members
        if not result:
            raise GlobError(start, "found a class that matches nothing; '/' and NUL are never matched by a class")
        return frozenset(result)

    def class_member(self) -> int:
        position = self.position
        encoded = to_bytes(self.literal_character())
        if len(encoded) > 1:
            raise GlobError(
                position, "found a character of several bytes in a class; write it as an alternative in braces"
            )
        if encoded == b"/" and self.pattern[position] == "/":
            raise GlobError(position, "found '/' in a class, which a class never matches; write '{/,…}' instead")
        return encoded[0]


def parse(pattern: str) -> Node:
    r"""Parse an AppArmor glob.

    ``*`` is zero or more bytes but '/', at least one where it is a whole path component; ``**`` also matches '/', at
    least one byte after a '/'; ``?`` one byte but '/'; ``[abc]``, ``[a-c]``, ``[^abc]`` one byte, never '/';
    ``{a,b}`` alternatives; ``\x`` the character x.

    Raises :class:`GlobError` with the position of what cannot be read.
    """
    if len(to_bytes(pattern)) > MAXIMUM_LENGTH:
        raise GlobError(
            MAXIMUM_LENGTH, f"found a pattern of more than {MAXIMUM_LENGTH} bytes; no path is that long, shorten it"
        )
    return _Parser(pattern).parse()


def has_wildcards(text: str) -> bool:
    """Tell whether a text written as a path has wildcards, which no one means as characters of a name."""
    return "*" in text or "?" in text


def has_groups(text: str) -> bool:
    """Tell whether a text written as a path has what is a group or class in a pattern; some names do have these."""
    return re.search(r"\{[^{}]*,[^{}]*\}|\[[^\[\]]+\]", text) is not None


def escape(path: str) -> str:
    """Give the pattern that matches exactly ``path``."""
    return "".join("\\" + character if character in "*?[]{}\\," else character for character in path)


def literal_directory(pattern: str) -> tuple[str, str]:
    """Split a pattern into the directory before its first wildcard, unescaped, and the rest of the pattern.

    The rest starts after that directory's slash: ``/usr/lib/*.so`` gives ``("/usr/lib", "*.so")``. A pattern without
    wildcard is split at its last slash; one whose wildcards start before the first slash gives ``("", pattern)``.
    """
    directory: list[str] = []
    taken = position = 0
    current: list[str] = []
    while position < len(pattern) and pattern[position] not in "*?[{":
        if pattern[position] == "\\":
            position += 1
        current.append(pattern[position : position + 1])
        position += 1
        if current[-1] == "/":
            directory += current
            current = []
            taken = position
    if not taken:
        return "", pattern
    return "".join(directory).rstrip("/") or "/", pattern[taken:]


def object_node(kind: ObjectKind, value: str, *, recursive: bool) -> Node:
    """Give the tree of the paths an object of this kind and value names.

    Raises :class:`GlobError` for a malformed PATTERN.
    """
    if kind is ObjectKind.PATTERN:
        return parse(value)
    octets = to_bytes(value)
    if kind is ObjectKind.PATH:
        return Literal(octets)
    if kind is ObjectKind.EXECNAME:
        above = Alternation((EMPTY, Sequence((Repeat(ANY_BYTE, 1), Literal(b"/")))))
        return Sequence((Literal(b"/"), above, Literal(octets)))
    below = ANY_BYTE if recursive else NOT_SLASH
    if octets == b"/":
        return Sequence((Literal(b"/"), Repeat(below, 0)))
    return Sequence((Literal(octets.rstrip(b"/")), Alternation((EMPTY, Sequence((Literal(b"/"), Repeat(below, 1)))))))


def rule_object(rule: Rule) -> Node:
    """Give the tree of the paths a rule's object names, whatever its kind.

    Raises :class:`GlobError` for a malformed PATTERN.
    """
    return object_node(rule.kind, rule.value, recursive=rule.recursive)


def _class_regex(classes: frozenset[int]) -> bytes:
    if classes == NOT_SLASH:
        return rb"[^/\x00]"
    if classes == ANY_BYTE:
        return rb"[^\x00]"
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(classes)) + b"]"


def to_regex(node: Node) -> bytes:
    """Give a regular expression for :mod:`re` (bytes) whose ``fullmatch`` is true for exactly what ``node`` matches."""
    match node:
        case Literal(value):
            return re.escape(value)
        case AnyByte(classes):
            return _class_regex(classes)
        case Repeat(classes, minimum):
            return _class_regex(classes) + (b"+" if minimum else b"*")
        case Sequence(parts):
            return b"".join(to_regex(part) for part in parts)
        case Alternation(choices):
            return b"(?:" + b"|".join(to_regex(choice) for choice in choices) + b")"


def simulate(node: Node, path: bytes, positions: frozenset[int] = frozenset({0})) -> frozenset[int]:
    """Give the positions at which ``node`` may end when it starts at one of ``positions``.

    A matcher without backtracking.
    """
    match node:
        case Literal(value):
            return frozenset(start + len(value) for start in positions if path.startswith(value, start))
        case AnyByte(classes):
            return frozenset(start + 1 for start in positions if start < len(path) and path[start] in classes)
        case Repeat(classes, minimum):
            return _run(classes, minimum, path, positions)
        case Sequence(parts):
            for part in parts:
                positions = simulate(part, path, positions)
            return positions
        case Alternation(choices):
            return frozenset().union(*(simulate(choice, path, positions) for choice in choices))


def _run(classes: frozenset[int], minimum: int, path: bytes, positions: frozenset[int]) -> frozenset[int]:
    ends: set[int] = set()
    for start in sorted(positions):
        if start in ends:
            continue  # an earlier start ran through here, and on
        end = start
        if not minimum:
            ends.add(start)
        while end < len(path) and path[end] in classes:
            end += 1
            ends.add(end)
    return frozenset(ends)


def _choice_points(node: Node) -> int:
    """Count the places where a backtracking matcher may have to come back to."""
    match node:
        case Repeat():
            return 1
        case Sequence(parts):
            return sum(_choice_points(part) for part in parts)
        case Alternation(choices):
            return 1 + sum(_choice_points(choice) for choice in choices)
        case _:
            return 0


@functools.lru_cache(maxsize=65536)
def _compiled(kind: ObjectKind, value: str, recursive: bool) -> re.Pattern[bytes] | Node:  # noqa: FBT001 - a cache key
    node = object_node(kind, value, recursive=recursive)
    return node if _choice_points(node) > _BACKTRACKING_LIMIT else re.compile(to_regex(node), re.DOTALL)


def matches(rule: Rule, path: str | bytes) -> bool:
    """Tell whether a rule's object names ``path`` (absolute, resolved, without trailing slash).

    The reference matcher. What is no file names none.
    """
    if rule.kind not in PATH_KINDS:
        return False
    octets = path if isinstance(path, bytes) else to_bytes(path)
    if rule.kind is ObjectKind.PATH:
        return to_bytes(rule.value) == octets
    compiled = _compiled(rule.kind, rule.value, rule.recursive)
    if isinstance(compiled, re.Pattern):
        return compiled.fullmatch(octets) is not None
    return len(octets) in simulate(compiled, octets)
