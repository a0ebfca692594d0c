# SPDX-License-Identifier: Apache-2.0
"""Runs `nft` as a child that may hang, babble or crash: nothing of that reaches the agent.

The program compiles the structure of a table (chains, sets, rules) and never sees an element, a name or any other text
of a policy. Commands go in as JSON made from data; the environment is empty, the time and the output are bounded.
What it says about an error is shown with everything but plain characters taken out.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from typing import TYPE_CHECKING, Final

from guest_agent.engines.network_port import EngineError, EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLACES: Final = ("/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft")
"""Where `nft` is looked for, in this order; never by PATH."""
DEADLINE_SECONDS: Final = 20.0
MAXIMUM_OUTPUT_BYTES: Final = 1 << 20
_SHOWN_CHARACTERS: Final = 600

Command = dict[str, object]


class Nft:
    """One `nft` program. Runs in the network namespace of the thread that calls."""

    def __init__(self, program: str | None = None, *, deadline: float = DEADLINE_SECONDS) -> None:
        """``program`` is an absolute path; None: the first of :data:`PLACES` that is there, at each use."""
        self._program = program
        self._deadline = deadline

    def program(self) -> str:
        """Give the path of the program. Raises EngineUnavailableError."""
        places = (self._program,) if self._program else PLACES
        for place in places:
            if os.access(place, os.X_OK):
                return place
        message = f"there is no nft program at {', '.join(places)}; install nftables (1.0.6 or later)"
        raise EngineUnavailableError(message)

    def version(self) -> str:
        """Give what the program says of itself. Raises EngineError."""
        return _plain(self._call("--version"))

    def run(self, commands: Sequence[Mapping[str, object]]) -> None:
        """Hand over commands of libnftables' JSON as one transaction. Raises EngineError with what nft said."""
        self._call("-j", "-f", "-", given=json.dumps({"nftables": list(commands)}).encode("ascii"))

    def _call(self, *arguments: str, given: bytes = b"") -> bytes:
        program = self.program()
        try:
            with os.fdopen(os.memfd_create("hauberk-nft", os.MFD_CLOEXEC), "w+b") as stdin:
                stdin.write(given)
                stdin.seek(0)
                # The program's path is fixed, and so are its arguments.
                process = subprocess.Popen(  # noqa: S603
                    [program, *arguments],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={},
                    cwd="/",
                )
        except OSError as error:
            message = f"{program} could not be started: {error.strerror}; is it a program of this machine?"
            raise EngineError(message) from error
        with process:
            try:
                said = self._collect(process, program)
            finally:
                process.kill()
        code = process.returncode
        if code < 0:
            message = (
                f"{program} was ended by signal {-code}{_told(said)}; nothing changed. Is another nft release there?"
            )
            raise EngineError(message)
        if code != 0:
            message = f"{program} refused what was asked (exit code {code}){_told(said)}; nothing changed"
            raise EngineError(message)
        return said

    def _collect(self, process: subprocess.Popen[bytes], program: str) -> bytes:
        """Read all output until the program ends. Raises EngineError when it takes too long or says too much."""
        if process.stdout is None:  # pragma: no cover - it was asked for
            message = f"{program} was started without a pipe for its output"
            raise EngineError(message)
        end = time.monotonic() + self._deadline
        said = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, end - time.monotonic())):
                    message = f"{program} took longer than {self._deadline:g} s and was ended; nothing changed"
                    raise EngineError(message)
                read = os.read(process.stdout.fileno(), 1 << 16)
                if not read:
                    break
                said += read
                if len(said) > MAXIMUM_OUTPUT_BYTES:
                    message = f"{program} said more than {MAXIMUM_OUTPUT_BYTES} bytes and was ended; nothing changed"
                    raise EngineError(message)
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            message = f"{program} took longer than {self._deadline:g} s and was ended; nothing changed"
            raise EngineError(message) from error
        return bytes(said)


def _told(said: bytes) -> str:
    plain = _plain(said)
    return f": {plain}" if plain else ", and said nothing"


def _plain(said: bytes) -> str:
    """Give output as one short line of plain characters."""
    characters = (
        character if character.isprintable() and character.isascii() else " "
        for character in said[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace")
    )
    shown = " ".join("".join(characters).split())
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"
