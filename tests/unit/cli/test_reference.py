# SPDX-License-Identifier: Apache-2.0
"""The reference names every command, option and choice that the parsers have, and none that they have not."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hauberk.cli import complete_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).parents[3] / "docs/command-line.md"


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Give the parsers of commands that do something."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
    if not below:
        yield parser
    for action in below:
        for one in action.choices.values():
            yield from commands(one)


COMMANDS = {parser.prog: parser for parser in commands(complete_parser())}


def sections() -> dict[str, str]:
    """Give the text below each command's heading."""
    found = {}
    for part in re.split(r"^### ", REFERENCE.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        found[heading.strip()] = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return found


def section_of(command: str) -> tuple[str, str]:
    """Give heading and text of the section that a command is told of in: its own, or one for several."""
    texts = sections()
    heading = command if command in texts else command.rpartition(" ")[0]
    return heading, texts[heading]


def named(text: str) -> set[str]:
    """Give what stands in backticks."""
    return {word for group in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[\s,]+|\\?\|", group)}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_is_named_with_its_command(command: str) -> None:
    heading, text = section_of(command)
    words = named(text)
    if heading != command:
        assert command.rpartition(" ")[2] in words
    for action in COMMANDS[command]._actions:  # noqa: SLF001 - argparse has no public way to look at a parser
        if isinstance(action, argparse._HelpAction):  # noqa: SLF001
            continue
        names = action.option_strings or [str(action.metavar or action.dest).partition("|")[0]]
        assert words.issuperset(names), names
        if action.choices is not None and not action.option_strings:
            assert words.issuperset(action.choices), action.choices


@pytest.mark.parametrize("heading", sections())
def test_no_option_is_named_that_is_not_there(heading: str) -> None:
    parsers = [parser for command, parser in COMMANDS.items() if section_of(command)[0] == heading]
    assert parsers, f"there is no command {heading}"
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}  # noqa: SLF001
    written = {word.partition("=")[0] for word in named(sections()[heading]) if re.fullmatch(r"--[a-z][^`]*", word)}
    assert written <= known


def test_what_holds_for_all_is_told() -> None:
    assert "--version" in named(REFERENCE.read_text())
    assert all(re.search(rf"^\| {code} \|", REFERENCE.read_text(), flags=re.MULTILINE) for code in range(4))


def test_choices_of_questions_are_told() -> None:
    from hauberk.cli import policy  # noqa: PLC0415 - not needed elsewhere
    from hauberk.policy.rules import Operation  # noqa: PLC0415

    assert [operation.value for operation in Operation] == list(policy.OPERATIONS)
    assert named(sections()["hauberk policy explain"]).issuperset(policy.OPERATIONS)
