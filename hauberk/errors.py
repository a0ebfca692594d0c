# SPDX-License-Identifier: Apache-2.0
"""Errors that the library raises on purpose.

One root, so that a caller can tell "Hauberk refuses this" from a defect. Each message says what was found, what was
expected and what to do next, because the person who reads it often has nothing but the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def visible(text: str) -> str:
    """Escape what a terminal would act on, line breaks included: names of files and texts in policies hold anything."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class HauberkError(Exception):
    """Root of all errors raised on purpose. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class FactsError(HauberkError):
    """A fact about a workload's root file system could not be established.

    The workload must not be started on a guess.
    """

    exit_code = 3


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with a policy, and where.

    Lines and columns count from 1; 0 means "the file as a whole". A ``warning`` is told and refuses nothing.
    """

    file: str
    line: int
    column: int
    field: str  # "spec.process.matchPaths[0].path"; empty when the document itself cannot be read
    found: str
    expected: str
    advice: str
    warning: bool = False

    def __str__(self) -> str:
        """Render as ``file:line:column: [warning: ]field: found X, expected Y. What to do``."""
        file = visible(self.file)
        place = f"{file}:{self.line}:{self.column}: " if self.line else f"{file}: "
        field = f"{self.field}: " if self.field else ""
        return f"{place}{'warning: ' if self.warning else ''}{field}{self.describe()}"

    def describe(self) -> str:
        """Give the message without its place."""
        return f"found {self.found}, expected {self.expected}. {self.advice}"


class PolicyError(HauberkError):
    """One or more policy documents are refused.

    ``problems`` holds every problem of every document, in reading order.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Take the problems; the error's text is one line for each."""
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
