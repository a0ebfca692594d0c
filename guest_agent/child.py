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
from typing import TYPE_CHECKING, Final

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
    stdin = os.memfd_create("hauberk-request", os.MFD_CLOEXEC)
    stdout = os.memfd_create("hauberk-answer", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(stdin), "wb") as file:
            file.write(json.dumps({**request, "task": task}).encode("ascii"))
        os.lseek(stdin, 0, os.SEEK_SET)
        return _answer(task, stdin, stdout, deadline)
    finally:
        os.close(stdin)
        os.close(stdout)


def _answer(task: str, stdin: int, stdout: int, deadline: float) -> dict[str, object]:
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
    except OSError as error:
        message = f"no child could be started for task {task}: {error}"
        raise ChildError(kind="OSError", message=message) from error
    if completed.returncode != 0:
        message = f"the child for task {task} ended with code {completed.returncode}, expected an answer"
        raise ChildError(kind="ChildProcessError", message=message)
    os.lseek(stdout, 0, os.SEEK_SET)
    with os.fdopen(os.dup(stdout), "rb") as file:
        data = file.read()
    try:
        answer = json.loads(data)
    except ValueError as error:
        message = f"the child for task {task} gave {len(data)} bytes that are no JSON, expected an answer"
        raise ChildError(kind="ValueError", message=message) from error
    if not isinstance(answer, dict):
        message = f"the child for task {task} gave no object, expected an answer"
        raise ChildError(kind="ValueError", message=message)
    refusal = answer.get("error")
    if isinstance(refusal, dict):
        raise ChildError(str(refusal.get("kind")), str(refusal.get("message")))
    return answer
