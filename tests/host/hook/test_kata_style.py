# SPDX-License-Identifier: Apache-2.0
"""As kata-agent runs guest hooks: from a directory, argv of two words, no environment, exit status unread."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from guest_agent.api.hook_socket import HookAnswer, Stage

from .conftest import HOOK, Agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARK = ["sh", "-c", "echo parked; exec sleep 600"]


@contextmanager
def parked(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a stand-in for the container's init, wait until it is parked, and leave nothing of it behind."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"parked\n"
        try:
            yield process
        finally:
            process.kill()


def run_guest_hook(
    directory: Path, stage: str, state: dict[str, object] | bytes, socket_path: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Install the hook as a guest image has it and start it as kata-agent does."""
    place = directory / stage
    place.mkdir(exist_ok=True)
    shutil.copy(HOOK, place / "hauberk-hook")
    data = state if isinstance(state, bytes) else json.dumps(state).encode()
    options = ["--socket", str(socket_path)] if socket_path else []
    return subprocess.run(
        [str(place / "hauberk-hook"), stage, *options], input=data, capture_output=True, timeout=60, check=False, env={}
    )


def kata_state(pid: int) -> dict[str, object]:
    return {
        "ociVersion": "1.1.0",
        "id": "c0ffee",
        "status": "created",
        "pid": pid,
        "bundle": "/run/kata-containers/c0ffee",
        "annotations": {"io.kubernetes.cri.container-type": "container"},
    }


PARKED_INITS = {
    "own mount namespace": ["unshare", "--mount", *PARK],
    "own PID namespace": ["unshare", "--pid", "--fork", "--kill-child", *PARK],
    "the runtime's executable": [sys.executable, "-c", "print('parked', flush=True); import time; time.sleep(600)"],
}


@pytest.mark.parametrize("kind", PARKED_INITS)
def test_a_refused_init_is_killed(tmp_path: Path, agent: Agent, kind: str) -> None:
    agent.answer = HookAnswer(accepted=False, message="no policy covers it")
    with parked(PARKED_INITS[kind]) as init:
        pid = init.pid
        if kind == "own PID namespace":
            children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout
            pid = int(children.split()[0])
        result = run_guest_hook(tmp_path, "prestart", kata_state(pid), agent.path)
        assert result.returncode == 1
        line = f"container c0ffee refused: no policy covers it; its init (pid {pid}) was killed. "
        assert line in result.stderr.decode()
        assert result.stderr.count(b"\n") == 1
        assert init.wait(timeout=60) != 0  # unshare has a status of its own for a killed child


def test_an_accepted_init_is_left_alone(tmp_path: Path, agent: Agent) -> None:
    with parked(PARKED_INITS["own mount namespace"]) as init:
        result = run_guest_hook(tmp_path, "prestart", kata_state(init.pid), agent.path)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
        assert init.poll() is None
    assert agent.stages("c0ffee") == [Stage.PRESTART]


def test_without_an_agent_at_the_fixed_path_the_init_is_killed(tmp_path: Path) -> None:
    with parked(PARKED_INITS["own mount namespace"]) as init:
        command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
        place = tmp_path / "prestart"
        place.mkdir()
        shutil.copy(HOOK, place / "hauberk-hook")
        result = subprocess.run(
            [*command, str(place / "hauberk-hook"), "prestart"],
            input=json.dumps(kata_state(init.pid)).encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"no agent listens on /run/hauberk/hook.sock; its init" in result.stderr
        assert init.wait(timeout=60) == -signal.SIGKILL


def test_annotations_made_to_overflow_do_not_save_the_init(tmp_path: Path, agent: Agent) -> None:
    with parked(PARKED_INITS["own mount namespace"]) as init:
        state = kata_state(init.pid) | {"annotations": {"a": "x" * (3 << 20)}}
        assert b"was killed" in run_guest_hook(tmp_path, "prestart", state, agent.path).stderr
        assert init.wait(timeout=60) == -signal.SIGKILL
    assert agent.asked == []


def test_a_process_that_is_no_parked_init_is_spared(tmp_path: Path, agent: Agent) -> None:
    agent.answer = HookAnswer(accepted=False, message="no")
    with parked(PARK) as bystander:
        result = run_guest_hook(tmp_path, "prestart", kata_state(bystander.pid), agent.path)
        assert f"pid {bystander.pid} was NOT killed: it has neither namespaces of its own" in result.stderr.decode()
        assert bystander.poll() is None


@pytest.mark.parametrize("pid", [1, 2])
def test_the_system_is_spared(tmp_path: Path, agent: Agent, pid: int) -> None:
    agent.answer = HookAnswer(accepted=False, message="no")
    result = run_guest_hook(tmp_path, "prestart", kata_state(pid), agent.path)
    assert result.returncode == 1
    assert b"was killed" not in result.stderr
    os.kill(pid, 0)


def test_an_init_that_is_gone_is_said_to_be(tmp_path: Path, agent: Agent) -> None:
    agent.answer = HookAnswer(accepted=False, message="no")
    with subprocess.Popen(["true"]) as gone:
        gone.wait(timeout=60)
    result = run_guest_hook(tmp_path, "prestart", kata_state(gone.pid), agent.path)
    assert f"its init (pid {gone.pid}) is already gone" in result.stderr.decode()


@pytest.mark.parametrize("state", [b"{", b"nonsense", b'{"id":"c0ffee"}', b'{"id":"c0ffee","pid":0}'])
def test_what_could_not_be_killed_is_said(tmp_path: Path, state: bytes) -> None:
    result = run_guest_hook(tmp_path, "prestart", state, tmp_path / "none")
    assert result.returncode == 1
    assert b"its init could NOT be killed" in result.stderr


def test_poststop_of_an_unknown_container_is_harmless(tmp_path: Path, agent: Agent) -> None:
    state = kata_state(0) | {"status": "stopped"}
    for _ in range(2):
        assert run_guest_hook(tmp_path, "poststop", state, agent.path).returncode == 0
    assert agent.stages("c0ffee") == [Stage.POSTSTOP, Stage.POSTSTOP]


def test_a_squatted_socket_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "squatted"
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        os.chdir("/")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(8)
        os.write(ready_write, b"x")
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"HBK1" + bytes(8))
    try:
        assert os.read(ready_read, 1) == b"x"
        result = run_guest_hook(tmp_path, "poststop", kata_state(0), path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready_read)
        os.close(ready_write)
    assert result.returncode == 1
    assert b"is held by uid 65534, not by the agent" in result.stderr


def test_the_line_reaches_the_log(tmp_path: Path) -> None:
    """A hook's stderr is dropped by crun: syslog has the line. Its socket stands in a mount namespace of its own."""
    log = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(log))
        receiver.settimeout(60)
        script = f'mount -t tmpfs none /dev && mkdir /dev/shm && touch /dev/null && ln -s {log} /dev/log && exec "$@"'
        result = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", str(HOOK), "createRuntime", "--socket", "/nonexistent"],
            input=b'{"id":"web"}',
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert receiver.recv(4096) == b"<27>" + result.stderr.rstrip(b"\n")
    assert b"container web refused" in result.stderr
