# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - a command line prints
"""``hauberk completion SHELL``: a script with which a shell completes commands, options and file names.

The script is made from the parsers that the commands themselves use, so it knows what they know. shtab makes it; it is
an optional dependency, since most machines that run Hauberk have nobody who types there.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SHELLS: Final = ("bash", "zsh", "fish")
_INSTRUCTIONS: Final = """\
bash   hauberk completion bash > ~/.local/share/bash-completion/completions/hauberk
zsh    hauberk completion zsh > DIR/_hauberk, with DIR in $fpath
fish   hauberk completion fish > ~/.config/fish/completions/hauberk.fish"""
_FILES: Final = frozenset(("FILE", "FILE|DIR", "SIG", "PUB", "KEY", "OLD", "NEW", "PREFIX"))
"""What arguments call a file's name in the help."""
_DIRECTORIES: Final = frozenset(("DIR",))


def register(subparsers: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    """Add ``completion``."""
    import argparse  # noqa: PLC0415 - loaded already by whoever has the subparsers

    command = subparsers.add_parser(
        "completion",
        help="print a script for the completion of commands in a shell",
        description=f"Print a script for a shell:\n\n{_INSTRUCTIONS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        print(f"hauberk: {error}; the script is made by shtab: install hauberk[completion]", file=sys.stderr)
        return 3
    from hauberk.cli import complete_parser  # noqa: PLC0415 - the package that imports this module

    parser = complete_parser()
    for action in _actions(parser):
        names = {action.metavar} if isinstance(action.metavar, str) else set(action.metavar or ())
        if names & _FILES or getattr(action.type, "__name__", "") == "Path":
            vars(action)["complete"] = shtab.FILE  # where shtab looks for it
        elif names & _DIRECTORIES:
            vars(action)["complete"] = shtab.DIRECTORY
    print(shtab.complete(parser, shell=arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Give every argument of a parser and of the commands below it."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to look at a parser
        yield action
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                yield from _actions(below)
