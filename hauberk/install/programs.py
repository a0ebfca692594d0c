# SPDX-License-Identifier: Apache-2.0
"""The programs that a check asks: the hook itself, the interpreter, containerd. The only module that starts any.

Only on the running machine: nothing of an image is ever executed.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS: Final = 30.0
_STATE: Final = b'{"ociVersion":"1.0","id":"hauberk-install-check","status":"stopped","bundle":"/nonexistent"}'


def _run(command: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes] | str:
    """Run a program with an empty environment; the reason if it could not be run."""
    try:
        return subprocess.run(  # noqa: S603 - programs named by absolute path
            command, input=stdin, capture_output=True, timeout=_SECONDS, check=False, env={}, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {_SECONDS:.0f} s"
    except OSError as error:
        return f"{command[0]} cannot be started ({error.strerror})"


def ask_hook(path: str) -> tuple[bool, str]:
    """Run the hook for a container that does not exist. Gives whether it answers as it should, and what that means."""
    result = _run([path, "poststop"], _STATE)
    if isinstance(result, str):
        return False, result
    said = result.stderr.decode("utf-8", "replace").strip()
    if result.returncode == 0:
        return True, f"{path} works, and an agent answers it"
    if said.startswith("hauberk-hook: ") and "no agent listens" in said:
        return True, f"{path} works; no agent listens now, so containers are refused until one does"
    return False, f"{path} does not work (exit {result.returncode}): {said or 'it said nothing'}"


def python_version(path: str) -> tuple[int, int] | None:
    """Ask an interpreter for its version; None if it does not answer."""
    result = _run([path, "-ISEc", "import sys; print(*sys.version_info[:2])"])
    if isinstance(result, str) or result.returncode != 0:
        return None
    try:
        major, minor = map(int, result.stdout.split())
    except ValueError:
        return None
    return major, minor


def containerd_dump(path: str) -> bytes | str:
    """Give the configuration that containerd would use, as TOML; a sentence if it does not tell."""
    result = _run([path, "config", "dump"])
    if isinstance(result, str):
        return result
    if result.returncode != 0:
        said = result.stderr.decode("utf-8", "replace").strip()
        return f"{path} config dump does not work (exit {result.returncode}): {said or 'it said nothing'}"
    return result.stdout
