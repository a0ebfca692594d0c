# SPDX-License-Identifier: Apache-2.0
"""The record of what was put where: one JSON file a target in ``/var/lib/hauberk/install``.

It is written before the first change, so that an installation cut short can be taken back too, and lists everything
with its digest: uninstalling removes what still is as it was put, and nothing else. Read strictly, since it decides
what is deleted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Final, get_type_hints

from hauberk.install.errors import InstallError
from hauberk.install.tree import parts_of

_VERSION: Final = 1
_HEXADECIMAL: Final = frozenset("0123456789abcdef")
_KINDS: Final = ("file", "link", "edit")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is there for a target.

    ``made``: by us (else it was there already, and stays). ``saved``: where what it replaced was kept.
    """

    kind: str  # file, link, edit
    path: str
    made: bool
    sha256: str = ""
    mode: int = 0
    target: str = ""
    saved: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What was put for one target, and with which options. ``directories``: made by us, parents first."""

    target: str
    options: dict[str, object]
    items: tuple[Item, ...] = ()
    directories: tuple[str, ...] = ()

    def item(self, path: str) -> Item | None:
        """Give the entry of a path."""
        return next((item for item in self.items if item.path == path), None)

    def encode(self) -> bytes:
        """Render as JSON that a person can read."""
        items = [
            {name: value for field in fields(item) if (value := getattr(item, (name := field.name))) not in ("", None)}
            for item in self.items
        ]
        document = {
            "version": _VERSION,
            "target": self.target,
            "options": self.options,
            "items": items,
            "directories": list(self.directories),
        }
        return json.dumps(document, indent=1).encode() + b"\n"


def decode(data: bytes, target: str, shown: str) -> Record:
    """Read a record. Raises InstallError for anything but what ``encode`` writes."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or set(document) != {"version", "target", "options", "items", "directories"}:
            raise ValueError("unexpected members")  # noqa: EM101, TRY003, TRY301 - told below
        if document["version"] != _VERSION or document["target"] != target or not isinstance(document["options"], dict):
            raise ValueError("version, target or options")  # noqa: EM101, TRY003, TRY301 - told below
        items = tuple(_item(entry) for entry in document["items"])
        directories = tuple(_path(path) for path in document["directories"])
    except (ValueError, TypeError, KeyError, AttributeError, InstallError, RecursionError) as error:
        message = (
            f"{shown} is no record of an installation ({error}); compare it with a backup, or move it away and take"
            " back by hand what docs/install.md lists"
        )
        raise InstallError(message) from error
    return Record(target, document["options"], items, directories)


def _item(entry: dict[str, Any]) -> Item:
    hints = get_type_hints(Item)
    for name, value in entry.items():
        if type(value) is not hints[name]:
            message = f"{name}: {value!r}"
            raise ValueError(message)
    item = Item(**entry)
    if item.kind not in _KINDS or not set(item.sha256) <= _HEXADECIMAL:
        message = f"entry {entry!r}"
        raise ValueError(message)
    _path(item.path)
    if item.saved:
        _path(item.saved)
    return item


def _path(path: object) -> str:
    if not isinstance(path, str):
        message = f"path {path!r}"
        raise TypeError(message)
    parts_of(path)
    return path
