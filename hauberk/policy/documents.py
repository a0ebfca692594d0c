# SPDX-License-Identifier: Apache-2.0
"""YAML text -> plain values, with the place of each one.

A policy decides what may run, so the reader takes no liberties. It builds values from the parser's events itself
instead of using the library's composer: that recurses in C as deep as the text says, and shares nodes between
aliases, so that ten lines can stand for billions of values. Here each alias counts as much as what it stands for, and
depth, size and number of values are bounded.

Of YAML's scalars only the unambiguous ones are taken for something other than text: ``null``, ``true``/``false``,
decimal integers. What one YAML version reads as a number or truth value and another as text (``yes``, ``010``,
``1:30``) stays text, and the models, which are strict about types, refuse it where text is not meant.

All problems of all documents are collected; only broken syntax ends the reading of a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hauberk.errors import Problem, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

MAXIMUM_BYTES = 16 * 1024 * 1024
"""Largest policy file in bytes."""
MAXIMUM_VALUES = 1_000_000
"""Most values in one file, each use of an alias counted in full. Reading that many takes some 250 MiB."""
MAXIMUM_DOCUMENT_VALUES = 600_000
"""Most values in one document: enough for the longest list of networks that an entry may have."""
MAXIMUM_DEPTH = 64
"""Deepest nesting of mappings and lists; policies need about ten."""
MAXIMUM_PROBLEMS = 1000
"""Most problems of one file that are told; then the rest of the file is not read."""

MAXIMUM_DIRECTIVES = 1000
"""How often ``%TAG`` may stand in one file."""

FieldPath = tuple[str | int, ...]
_TEXT_OF_ONE_VALUE = 64
"""Each use of a text by an alias counts as one value for so many characters, as reading it again takes its time."""

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_TAG + name for name in ("str", "int", "bool", "null", "float"))
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Place(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


class Document:
    """One YAML document: its plain value, and where each of its fields stands."""

    __slots__ = ("_root", "file")

    def __init__(self, file: str, root: _Node) -> None:
        """Take the name of the file for messages, and what was read."""
        self.file = file
        self._root = root

    @property
    def value(self) -> object:
        """The plain value. What aliases share is shared here too: do not change it."""
        return self._root.value

    def place(self, path: FieldPath, *, of_key: bool = False) -> Place:
        """Give the place of a field's value (or key), or of the nearest thing around it that is written down."""
        node = self._root
        key: Place | None = None
        for part in path:
            if isinstance(node.parts, dict) and part in node.parts:
                key, node = node.parts[str(part)]
            elif isinstance(node.parts, list) and isinstance(part, int) and part < len(node.parts):
                key, node = None, node.parts[part]
            else:
                return node.place
        return key if of_key and key else node.place


def printable(text: str, longest: int = 100) -> str:
    """Give a text of a document as it may stand in a message: without what a terminal obeys, and not too long."""
    return visible(text if len(text) <= longest else text[: longest - 1] + "…")


def field_name(path: FieldPath) -> str:
    """Write a path as people do: ``spec.process.matchPaths[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{printable(part)}" if text else printable(part)
    return text


@dataclass(slots=True)
class _Node:
    """A value with its place.

    ``value`` is plain throughout. ``parts`` are the nodes of a list, or those of a mapping by key, each with the key's
    place. ``size`` counts the values in it, aliases in full, and a long text as several.
    """

    place: Place
    value: Any
    size: int = 1
    parts: dict[str, tuple[Place, _Node]] | list[_Node] | None = None


class _StopReading(Exception):  # noqa: N818 - no error by itself: the problem is already noted
    """The rest of the file cannot be read."""


def read(data: bytes, file: str, problems: list[Problem]) -> list[Document]:
    """Read all documents of one file.

    What is wrong is appended to ``problems``; documents that could be read are returned.

    ``file`` is only a name for messages. Empty documents are skipped; a file without any document is a problem.
    """
    before = len(problems)
    reader = _Reader(file, problems)
    documents: list[Document] = []
    if len(data) > MAXIMUM_BYTES:
        reader.problem(
            Place(0, 0), f"more than {MAXIMUM_BYTES} bytes", "fewer", "Split the policies into several files"
        )
        return documents
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        reader.problem(
            Place(line, column), f"the byte 0x{data[error.start]:02x}", "UTF-8 text", "Save the file as UTF-8"
        )
        return documents
    if data.count(b"%TAG") > MAXIMUM_DIRECTIVES:
        # the parser compares each with all before it
        found = f"more than {MAXIMUM_DIRECTIVES} times '%TAG'"
        reader.problem(Place(0, 0), found, "a policy, which needs none", "Remove the directives")
        return documents
    documents = reader.documents(text)
    if not documents and len(problems) == before:
        reader.problem(
            Place(0, 0), "no document", "at least one policy", "Write a policy into the file, or leave the file out"
        )
    return documents


class _Reader:
    """Turns the events of one file into documents."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        import yaml  # noqa: PLC0415 - heavy; only needed when a document is read

        self.yaml = yaml
        self.file = file
        self.problems = problems
        self.anchors: dict[str, _Node | None] = {}
        self.values = 0
        self.document_values = 0
        self.told = 0
        self.path: list[str | int] = []

    def problem(self, place: Place, found: str, expected: str, advice: str) -> None:
        field = field_name(tuple(self.path))
        self.problems.append(Problem(self.file, place.line, place.column, field, found, expected, advice))
        self.told += 1
        if self.told == MAXIMUM_PROBLEMS:
            self.problem(place, f"{self.told} problems so far", "none", "Correct these and check again")
            raise _StopReading

    def documents(self, text: str) -> list[Document]:
        yaml = self.yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events = _events(loader(text))
        failed: Problem | None = None
        documents: list[Document] = []
        try:
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    self.anchors = {}
                    self.document_values = 0
                    before = len(self.problems)
                    node = self.node(next(events), events, depth=0)
                    if node is not None and node.value is not None and len(self.problems) == before:
                        documents.append(Document(self.file, node))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Place(mark.line + 1, mark.column + 1) if mark else Place(0, 0)
            what = printable(error.problem or "text that cannot be read", 200)
            failed = Problem(
                self.file,
                *place,
                "",
                f"broken YAML ({what})",
                "well-formed YAML",
                "Correct the text at or before this place",
            )
        except yaml.YAMLError as error:
            what = printable(" ".join(str(error).split()), 200)
            failed = Problem(
                self.file, 0, 0, "", f"broken YAML ({what})", "printable UTF-8 text", "Remove the character"
            )
        except _StopReading:
            pass
        if failed:
            self.problems.append(failed)
        return documents

    def node(self, event: Any, events: Iterator[Any], *, depth: int) -> _Node | None:  # noqa: ANN401 - untyped library
        """Build the node that starts with ``event``; None where its content was refused."""
        yaml = self.yaml
        place = Place(event.start_mark.line + 1, event.start_mark.column + 1)
        if depth > MAXIMUM_DEPTH:
            self.problem(place, f"values nested more than {MAXIMUM_DEPTH} deep", "a policy", "Flatten the document")
            raise _StopReading
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor or "", place)
        self.count(1, place)
        anchor = event.anchor
        if anchor is not None:
            self.anchors[anchor] = None  # being built: an alias to it from inside is a loop
        node: _Node | None
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, place)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.check_tag(event.tag, ("seq",), place)
            node = self.list_(events, place, depth)
        else:
            self.check_tag(event.tag, ("map",), place)
            node = self.mapping(events, place, depth)
        if anchor is not None:
            self.anchors[anchor] = node
        return node

    def count(self, values: int, place: Place) -> None:
        self.values += values
        self.document_values += values
        for counted, most, what in (
            (self.document_values, MAXIMUM_DOCUMENT_VALUES, "policy"),
            (self.values, MAXIMUM_VALUES, "file"),
        ):
            if counted > most:
                found = f"more than {most} values (aliases counted in full)"
                self.problem(place, found, "fewer", f"Split the {what}, or write less with aliases")
                raise _StopReading

    def alias(self, name: str, place: Place) -> _Node | None:
        node = self.anchors.get(name)
        shown = printable(name)
        if node is None:
            known = name in self.anchors
            found = (
                f"the alias *{shown} inside of what it stands for" if known else f"the alias *{shown} without an anchor"
            )
            self.problem(place, found, "an alias of a value written before it", "Write the value out")
            return None
        self.count(node.size, place)
        return _Node(place, node.value, node.size, node.parts)

    def check_tag(self, tag: str | None, allowed: tuple[str, ...], place: Place) -> None:
        if tag not in (None, "!", *(_TAG + name for name in allowed)):
            self.problem(place, f"the tag '{printable(tag or '')}'", "a plain value", "Remove the tag")

    def scalar(self, event: Any, place: Place) -> _Node | None:  # noqa: ANN401 - untyped library
        text = event.value
        if not text.isascii() and not _is_unicode(text):
            self.problem(
                place, f"'{printable(text)}'", "characters of Unicode", "Remove the escape of half a character"
            )
            return None
        tag = event.tag
        if tag is not None and tag != "!" and tag not in _SCALAR_TAGS:
            self.check_tag(tag, (), place)
            return None
        if tag in ("!", _TAG + "str") or (tag is None and not event.implicit[0]):
            return _Node(place, text, 1 + len(text) // _TEXT_OF_ONE_VALUE)
        plain = _plain(text)
        expected = {_TAG + "int": int, _TAG + "bool": bool, _TAG + "float": float, _TAG + "null": type(None)}.get(
            tag or ""
        )
        if expected and type(plain) is not expected:
            self.problem(
                place,
                f"'{printable(text)}' tagged {(tag or '').removeprefix(_TAG)}",
                "a value of that type",
                "Remove the tag",
            )
            return None
        return _Node(place, plain, 1 + len(text) // _TEXT_OF_ONE_VALUE)

    def list_(self, events: Iterator[Any], place: Place, depth: int) -> _Node | None:
        yaml = self.yaml
        items: list[_Node] = []
        complete = True
        size = 1
        for index, event in enumerate(events):
            if isinstance(event, yaml.SequenceEndEvent):
                break
            self.path.append(index)
            item = self.node(event, events, depth=depth + 1)
            self.path.pop()
            if item is None:
                complete = False
                continue
            items.append(item)
            size += item.size
        return _Node(place, [item.value for item in items], size, items) if complete else None

    def mapping(self, events: Iterator[Any], place: Place, depth: int) -> _Node | None:
        yaml = self.yaml
        entries: dict[str, tuple[Place, _Node]] = {}
        complete = True
        size = 1
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self.key(self.node(event, events, depth=depth + 1), entries)
            self.path.append(key.value if key else "?")
            item = self.node(next(events), events, depth=depth + 1)
            self.path.pop()
            if key is None or item is None:
                complete = False
                continue
            entries[key.value] = (key.place, item)
            size += 1 + item.size
        return (
            _Node(place, {name: item.value for name, (_, item) in entries.items()}, size, entries) if complete else None
        )

    def key(self, key: _Node | None, entries: dict[str, tuple[Place, _Node]]) -> _Node | None:
        """Give a mapping's key if it may be one; None where it was refused."""
        if key is None:
            return None
        if not isinstance(key.value, str):
            kind = type_name(key.value)
            self.problem(key.place, f"{kind} as a key", "text", "Put the key in quotes if it is meant as text")
            return None
        if key.value in entries:
            self.path.append(key.value)
            found = f"the key '{printable(key.value)}' a second time (first at line {entries[key.value][0].line})"
            self.problem(key.place, found, "each key once", "Remove one, or join their contents")
            self.path.pop()
            return None
        return key


def _events(loader: Any) -> Iterator[Any]:  # noqa: ANN401 - untyped library
    """Give the parser's events; the library's own generator asks twice for each."""
    try:
        while (event := loader.get_event()) is not None:
            yield event
    finally:
        loader.dispose()


def _is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8; one of the parsers lets escapes of surrogates through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(text: str) -> object:
    """Give the value of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not text.lstrip("-+").startswith("0") and any(mark in text for mark in ".eE"):
        return float(text)
    return text


def type_name(value: object) -> str:
    """Name a value's type as the author of a policy knows it."""
    names: dict[type, str] = {
        type(None): "null", bool: "a truth value", int: "a number", float: "a decimal number",
        str: "text", list: "a list", dict: "a mapping",
    }  # fmt: skip
    return names.get(type(value), "a value of another type")
