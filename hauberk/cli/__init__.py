# SPDX-License-Identifier: Apache-2.0
"""The ``hauberk`` command.

Each subcommand lives in a module of its own, which is imported only when it is asked for: typing ``hauberk policy
check`` must not wait for what ``hauberk alerts`` needs. Those modules import nothing heavy at their top.

Exit codes: 0 done; 1 the answer is no (invalid policy, bad signature); 2 wrong usage; 3 the environment lacks
something.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from hauberk import __version__
from hauberk.errors import HauberkError, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = {
    "policy": ("hauberk.cli.policy", "check policies and ask what they would do"),
    "bundle": ("hauberk.cli.bundle", "build, sign and verify bundles of policies"),
    "install": ("hauberk.cli.install", "put the hook into a runtime's way, or the agent into systemd's"),
    "uninstall": ("hauberk.cli.install", "take back what install put"),
    "agent": ("hauberk.cli.agent", "run the agent, or see what this kernel offers it"),
    "status": ("hauberk.cli.agent", "show what the agent enforces"),
    "workloads": ("hauberk.cli.agent", "list the workloads the agent knows"),
    "alerts": ("hauberk.cli.agent", "show what was refused and audited"),
    "network": ("hauberk.cli.network", "show what is filtered in each network, or take it away"),
    "completion": ("hauberk.cli.completion", "print a script for the completion of commands in a shell"),
}
"""Subcommand -> the module whose ``register(subparsers)`` adds it, and its line in the list of commands."""


class _Formatter(argparse.HelpFormatter):
    """Asks for the terminal's width itself: argparse imports shutil for it, whenever an option is added."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns())


def _columns() -> int:
    """Give the width of help texts: as wide as ``$COLUMNS`` or the terminal, as argparse has it."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns) - _MARGIN
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns - _MARGIN if sys.__stdout__ else _WIDTH
    except (OSError, ValueError):  # no terminal; closed
        return _WIDTH


_MARGIN, _WIDTH = 2, 78


class _Parser(argparse.ArgumentParser):
    """The parser of all commands; argparse makes those of subcommands of the same class."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(**{"formatter_class": _Formatter, **options})


def complete_parser() -> argparse.ArgumentParser:
    """Make the parser with all options of all commands."""
    return _parser(frozenset(_COMMANDS))


def _parser(asked: frozenset[str]) -> argparse.ArgumentParser:
    """Make the parser that knows the commands ``asked`` for; of others it knows the names only."""
    parser = _Parser(
        prog="hauberk",
        description="Write, check, sign and watch runtime-security policies.",
        epilog="Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 the environment lacks something.",
    )
    parser.add_argument("--version", action="version", version=f"hauberk {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, prog=parser.prog)
    modules = dict.fromkeys(_COMMANDS[name][0] for name in _COMMANDS if name in asked)
    for module in modules:
        importlib.import_module(module).register(subparsers)
    for name, (module, text) in _COMMANDS.items():
        if module not in modules:
            subparsers.add_parser(name, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's arguments) and give its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    # Whether a policy is valid is for Hauberk alone to say, and looking for plug-ins takes as long as reading it.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # What a path holds may not be printable; that must not end the report about it.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Only the first word can name the command: the top level has no option that takes a value.
        arguments = _parser(frozenset(words[:1])).parse_args(words)
        result: int = arguments.run(arguments)
        sys.stdout.flush()
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 0
    except HauberkError as error:
        lines = "\n".join(map(visible, str(error).split("\n")))
        print(f"hauberk: {lines}", file=sys.stderr)  # noqa: T201 - a command's output
        return error.exit_code
    except BrokenPipeError:
        _give_up_output()  # the reader went away
        return 3
    except OSError as error:
        # Commands explain what they cannot read; this is mostly the output itself, and must not look like "no".
        _give_up_output()
        where = f"{error.filename}: " if error.filename else ""
        message = (
            f"found {where}{error.strerror or error}, expected to read and write here. Check the disk, and the output"
        )
        print(f"hauberk: {visible(message)}", file=sys.stderr)  # noqa: T201 - a command's output
        return 3
    except KeyboardInterrupt:
        return 130
    return result


def _give_up_output() -> None:
    """Keep the interpreter from trying again, at its end, to write what nobody takes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
