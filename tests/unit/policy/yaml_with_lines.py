# SPDX-License-Identifier: Apache-2.0
"""Plain values -> block-style YAML, one field a line, and the line at which each field stands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hauberk.policy.documents import FieldPath


class Written:
    """A document as text. ``lines`` holds the line of each key or list element, counted from 1."""

    def __init__(self, value: object, *, twice: FieldPath | None = None) -> None:
        """Write a value. ``twice``: the key that is written a second time, below itself."""
        self.lines: dict[FieldPath, int] = {}
        self.second: int = 0
        """Line of the second one."""
        self._twice = twice
        self._text: list[str] = []
        self._write(value, (), "", "")
        self.text = "\n".join(self._text) + "\n"

    def _write(self, value: object, path: FieldPath, first: str, rest: str) -> None:
        """Write a value whose first line begins with ``first``, and the others with ``rest``."""
        if isinstance(value, dict) and value:
            for name, item in value.items():
                self._write_field(name, item, (*path, name), first, rest)
                first = rest
                if (*path, name) == self._twice:
                    self.second = len(self._text) + 1
                    self._write_field(name, item, (*path, name), first, rest)
        elif isinstance(value, list) and value:
            for index, item in enumerate(value):
                self.lines[*path, index] = len(self._text) + 1
                self._write(item, (*path, index), first + "- ", rest + "  ")
                first = rest
        else:
            self._text.append(first + json.dumps(value))

    def _write_field(self, name: str, item: object, path: FieldPath, first: str, rest: str) -> None:
        self.lines.setdefault(path, len(self._text) + 1)
        key = first + (name if name.isalnum() else json.dumps(name)) + ":"
        if isinstance(item, dict | list) and item:
            self._text.append(key)
            self._write(item, path, rest + "  ", rest + "  ")
        else:
            self._text.append(f"{key} {json.dumps(item)}")
