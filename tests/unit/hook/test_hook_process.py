# SPDX-License-Identifier: Apache-2.0
"""The hook as a runtime sees it: exit status and one line, whatever is missing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .conftest import HOOK

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from .conftest import RunHook

STATE = b'{"ociVersion":"1.0","id":"web","status":"creating","pid":0,"bundle":"/b"}'
LINE = re.compile(rb"hauberk-hook: container (\S+) (refused|not released): [ -~]+\. [ -~]+\n")


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """Check that this is a refusal in exactly one line, and return it."""
    assert result.returncode == 1
    assert result.stdout == b""
    assert LINE.fullmatch(result.stderr), result.stderr
    return result.stderr.decode()


def test_without_an_agent_it_refuses(run_hook: RunHook, tmp_path: Path) -> None:
    line = one_line(run_hook("createRuntime", "--socket", str(tmp_path / "none"), stdin=STATE))
    assert line.startswith("hauberk-hook: container web refused: no agent listens on ")


def test_a_socket_nobody_listens_on_refuses(run_hook: RunHook, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    assert "no agent listens" in one_line(run_hook("prestart", "--socket", str(tmp_path / "stale"), stdin=STATE))


def test_poststop_says_that_nothing_was_released(run_hook: RunHook, tmp_path: Path) -> None:
    line = one_line(run_hook("poststop", "--socket", str(tmp_path / "none"), stdin=STATE))
    assert line.startswith("hauberk-hook: container web not released: ")


@pytest.mark.parametrize(
    "arguments", [(), ("poststart",), ("createRuntime", "poststop"), ("--timeout", "x", "prestart")]
)
def test_wrong_usage_refuses_and_still_drains_stdin(arguments: tuple[str, ...]) -> None:
    # subprocess hides it when a reader leaves 3 MB in the pipe; os.write does not.
    read_end, write_end = os.pipe()
    with subprocess.Popen([str(HOOK), *arguments], stdin=read_end, stderr=subprocess.PIPE, env={}) as process:
        os.close(read_end)
        left = b'{"id":"web","annotations":{"a":"' + b"x" * 3_000_000 + b'"}}'
        while left:
            left = left[os.write(write_end, left[:65536]) :]
        os.close(write_end)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(b"hauberk-hook: container web refused: ")
    assert errors.count(b"\n") == 1


def test_an_empty_state_refuses(run_hook: RunHook) -> None:
    assert "no container state" in one_line(run_hook("createRuntime"))


def test_a_closed_stdin_refuses() -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", '"$0" createRuntime <&-', str(HOOK)], capture_output=True, timeout=60, check=False, env={}
    )
    one_line(result)


def test_a_closed_stderr_still_refuses() -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", '"$0" createRuntime --socket /nonexistent 2>&-', str(HOOK)],
        input=STATE,
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
        env={},
    )
    assert (result.returncode, result.stdout) == (1, b"")


def test_a_state_without_end_refuses_at_the_deadline() -> None:
    with subprocess.Popen(
        [str(HOOK), "createRuntime", "--timeout", "0.3"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={}
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(STATE)
        process.stdin.flush()
        assert process.wait(timeout=60) == 1
        assert process.stderr.read().startswith(b"hauberk-hook: container web refused: the end of the container state")


def test_an_oversized_state_refuses_by_size_and_name(run_hook: RunHook) -> None:
    state = b'{"id":"web","annotations":{"a":"' + b"x" * (1 << 20) + b'"}}'
    line = one_line(run_hook("createRuntime", "--socket", "/nonexistent", stdin=state))
    assert "container web refused" in line
    assert str(len(state)) in line


@pytest.mark.parametrize(
    ("identifier", "shown"),
    [(rb"a\nb", "a?b"), (rb"a\u001b[31m", "a?[31m"), ("ä".encode(), "?"), (b"y" * 500, "y" * 128)],
)
def test_what_a_state_says_cannot_forge_a_line(
    run_hook: RunHook, tmp_path: Path, identifier: bytes, shown: str
) -> None:
    line = one_line(
        run_hook("createRuntime", "--socket", str(tmp_path / "none"), stdin=b'{"id":"' + identifier + b'"}')
    )
    assert f"container {shown} refused" in line


@pytest.mark.parametrize("state", [b"\xff\xfe", b"[]", b"nonsense", b'{"id":7}', b'{"id":""}', b"[" * 100_000])
def test_an_unreadable_state_refuses_without_a_name(run_hook: RunHook, tmp_path: Path, state: bytes) -> None:
    assert "container (unknown) refused" in one_line(
        run_hook("prestart", "--socket", str(tmp_path / "none"), stdin=state)
    )


def test_prestart_says_when_it_could_not_kill(run_hook: RunHook, tmp_path: Path) -> None:
    line = one_line(run_hook("prestart", "--socket", str(tmp_path / "none"), stdin=STATE))
    assert "could NOT be killed" in line


def test_createruntime_never_kills(run_hook: RunHook, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        state = b'{"id":"web","pid":%d}' % victim.pid
        one_line(run_hook("createRuntime", "--socket", str(tmp_path / "none"), stdin=state))
        victim.communicate(b"\n", timeout=60)
    assert victim.returncode == 0


def test_the_environment_changes_nothing(run_hook: RunHook, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(0)")
    (tmp_path / "startup.py").write_text("raise SystemExit(0)")
    poison = {
        "PATH": "",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(tmp_path),
        "PYTHONHOME": "/nonexistent",
        "PYTHONSTARTUP": str(tmp_path / "startup.py"),
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
        "LD_LIBRARY_PATH": "/nonexistent:::",
        "HAUBERK_HOOK_SOCKET": "/elsewhere",
        "LC_ALL": "xx_YY.nonsense",
    }
    arguments = ("createRuntime", "--socket", str(tmp_path / "none"))
    clean = run_hook(*arguments, stdin=STATE, cwd=tmp_path)
    assert run_hook(*arguments, stdin=STATE, cwd=tmp_path, env=poison).stderr == clean.stderr
    one_line(clean)


def test_it_imports_built_in_modules_only() -> None:
    """Start-up time is what a container waits for: nothing is imported that the interpreter does not have loaded."""
    code = (
        "import sys; before = set(sys.modules); sys.argv = ['hook', 'createRuntime'];"
        f"source = open({str(HOOK)!r}).read(); exec(compile(source, 'hook', 'exec'), {{'__name__': 'other'}});"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        ["/usr/bin/python3", "-ISE", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == ["_socket", "select"]


def test_it_is_shipped_as_an_executable_of_the_system_interpreter() -> None:
    assert HOOK.read_bytes().startswith(b"#!/usr/bin/python3 -ISE\n")
    assert HOOK.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["hooks.d/zz-hauberk-create.json", "hooks.d/zz-hauberk-poststop.json"])
def test_the_hooks_d_files_start_the_hook_as_it_wants(hook: ModuleType, name: str) -> None:
    document = json.loads((HOOK.parents[1] / "deploy" / "oci" / name).read_text())
    entry = document["hook"]
    assert document["stages"] == [hook.parse_arguments(entry["args"][1:])[0]]
    assert entry["env"] == []
    assert entry["timeout"] > hook.TIMEOUT_SECONDS


def test_the_example_configuration_starts_the_hook_as_it_wants(hook: ModuleType) -> None:
    document = json.loads((HOOK.parents[1] / "deploy" / "oci" / "config-hooks.json").read_text())
    for stage, (entry,) in document["hooks"].items():
        assert hook.parse_arguments(entry["args"][1:])[0] == stage
        assert entry["env"] == []
        assert entry["timeout"] > hook.TIMEOUT_SECONDS
