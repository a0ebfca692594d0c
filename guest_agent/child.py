# SPDX-License-Identifier: Apache-2.0
"""Runs ``guest_agent.parsing`` as a child process: bounded in time and output, with nothing of the agent's environment.

Request and answer travel in memory files, so that neither side can block the other on a full pipe; the answer's size
is bounded by the child's file size limit, its time by a deadline after which it is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MAXIMUM_ANSWER_BYTES: Final = 128 << 20
DEADLINE_SECONDS: Final = 60.0
_PACKAGE_PARENT: Final = str(Path(__file__).resolve().parent.parent)
_CODE: Final = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    "sys.path.append({parent!r}); from guest_agent.parsing import main; main()"
)


class ChildError(Exception):
    """The child refused, or could not do, what was asked. ``kind`` is the class of what went wrong there."""

    def __init__(self, kind: str, message: str) -> None:
        """Take over what the child said."""
        self.kind = kind
        super().__init__(message)


def ask(task: str, request: Mapping[str, object], *, deadline: float = DEADLINE_SECONDS) -> dict[str, object]:
    """Give a task to a child and return its answer. ``deadline`` is in seconds. Raises ChildError."""
    try:
        with (
            os.fdopen(os.memfd_create("hauberk-request", os.MFD_CLOEXEC), "w+b") as stdin,
            os.fdopen(os.memfd_create("hauberk-answer", os.MFD_CLOEXEC), "r+b") as stdout,
        ):
            stdin.write(json.dumps({**request, "task": task}).encode("ascii"))
            stdin.seek(0)
            return _answer(task, stdin, stdout, deadline)
    except OSError as error:
        message = f"no child could be started for task {task}: {error}"
        raise ChildError(kind="OSError", message=message) from error


def _answer(task: str, stdin: IO[bytes], stdout: IO[bytes], deadline: float) -> dict[str, object]:
    code = _CODE.format(limit=MAXIMUM_ANSWER_BYTES, parent=_PACKAGE_PARENT)
    try:
        # The command is fixed, and of the agent's own interpreter.
        completed = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-c", code],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"the child for task {task} took longer than {deadline:g} s and was killed; the input is too large"
        raise ChildError(kind="TimeoutExpired", message=message) from error
    if completed.returncode != 0:
        message = f"the child for task {task} ended with code {completed.returncode}, expected an answer"
        raise ChildError(kind="ChildProcessError", message=message)
    stdout.seek(0)
    data = stdout.read()
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        message = f"the child for task {task} gave {len(data)} bytes that are no JSON, expected an answer"
        raise ChildError(kind="ValueError", message=message) from error
    if not isinstance(answer, dict):
        message = f"the child for task {task} gave no object, expected an answer"
        raise ChildError(kind="ValueError", message=message)
    if "error" in answer:
        refusal = answer["error"] if isinstance(answer["error"], dict) else {}
        reason = refusal.get("message") or f"the child for task {task} refused without a reason"
        raise ChildError(str(refusal.get("kind", "")), str(reason))
    return answer
