# SPDX-License-Identifier: Apache-2.0
"""runc and crun with the hook: a container runs when the agent accepted it, and in no other case."""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path

import pytest

from guest_agent.api.hook_socket import HookAnswer, Peer, Stage, serve

from .conftest import Agent, Bundle, Runtime, hooks, raw_agent

ECHO = ["/bin/echo", "the container ran"]


def read_request(connection: socket.socket) -> None:
    """Take a whole request, as an agent does before it goes wrong."""
    length = struct.unpack("<8xI", connection.recv(12, socket.MSG_WAITALL))[0]
    connection.recv(length, socket.MSG_WAITALL)


def stderr_file(runtime: Runtime, path: Path) -> dict[str, str]:
    """Have crun keep what it otherwise drops; runc shows a failed hook's stderr itself."""
    return {"run.oci.hooks.stderr": str(path)} if runtime.name == "crun" else {}


def refused_output(runtime: Runtime, bundle: Bundle, tmp_path: Path, hook_section: dict[str, object]) -> str:
    """Run a container that must be refused; return everything the hook said."""
    said = tmp_path / "hook.stderr"
    bundle.write(hooks=hook_section, arguments=ECHO, annotations=stderr_file(runtime, said))
    result = runtime("run", "--bundle", str(bundle.path), runtime.new_id())
    assert result.returncode != 0
    assert "the container ran" not in result.stdout
    return result.stdout + (said.read_text() if said.exists() else "")


def test_an_accepted_container_runs_and_is_released(runtime: Runtime, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks=hooks(agent.path), arguments=ECHO)
    identifier = runtime.new_id()
    result = runtime("run", "--bundle", str(bundle.path), identifier)
    assert (result.returncode, result.stdout) == (0, "the container ran\n")
    assert agent.stages(identifier) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]
    created, stopped = (state for _, state in agent.asked)
    assert created.status == {"runc": "creating", "crun": "created"}[runtime.name]
    assert created.pid is not None
    assert (stopped.status, stopped.pid) == ("stopped", None)
    assert created.bundle == stopped.bundle == str(bundle.path)


def test_a_refused_container_is_not_created(runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path) -> None:
    agent.answer = HookAnswer(accepted=False, message="policy default/deny-all covers it")
    output = refused_output(runtime, bundle, tmp_path, hooks(agent.path))
    identifier = runtime.containers[-1]
    line = f"hauberk-hook: container {identifier} refused: policy default/deny-all covers it. "
    assert output.count(line) == 1
    assert identifier not in runtime("list", "--quiet").stdout


def test_create_fails_too(runtime: Runtime, bundle: Bundle, agent: Agent) -> None:
    agent.answer = HookAnswer(accepted=False, message="no")
    bundle.write(hooks=hooks(agent.path), arguments=ECHO)
    assert runtime("create", "--bundle", str(bundle.path), runtime.new_id()).returncode != 0


def test_the_init_is_parked_while_the_agent_decides(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    seen = []

    def look(stage: Stage, state: bytes, _peer: Peer) -> HookAnswer:
        if stage is Stage.CREATE_RUNTIME:
            seen.append(Path(f"/proc/{json.loads(state)['pid']}/cmdline").read_bytes())
        return HookAnswer(accepted=True)

    with serve(tmp_path / "s", look):
        bundle.write(hooks=hooks(tmp_path / "s"), arguments=ECHO)
        assert runtime("run", "--bundle", str(bundle.path), runtime.new_id()).returncode == 0
    assert len(seen) == 1
    assert b"the container ran" not in seen[0]


def test_poststop_follows_a_failed_creation_and_may_be_repeated(runtime: Runtime, bundle: Bundle, agent: Agent) -> None:
    agent.answer = HookAnswer(accepted=False, message="no")
    bundle.write(hooks=hooks(agent.path), arguments=ECHO)
    identifier = runtime.new_id()
    assert runtime("run", "--bundle", str(bundle.path), identifier).returncode != 0
    # runc runs poststop after a refused createRuntime; crun 1.8 does not, and the agent must do without.
    expected = [Stage.CREATE_RUNTIME] + ([Stage.POSTSTOP] if runtime.name == "runc" else [])
    assert agent.stages(identifier) == expected
    runtime("delete", "--force", identifier)
    agent.answer = HookAnswer(accepted=True)
    assert runtime("run", "--bundle", str(bundle.path), identifier).returncode == 0
    assert agent.stages(identifier)[-2:] == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]


def test_a_container_that_was_never_started_is_released(runtime: Runtime, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks=hooks(agent.path), arguments=["/bin/sleep", "600"])
    identifier = runtime.new_id()
    assert runtime("create", "--bundle", str(bundle.path), identifier).returncode == 0
    assert agent.stages(identifier) == [Stage.CREATE_RUNTIME]
    assert runtime("delete", "--force", identifier).returncode == 0
    assert agent.stages(identifier) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]


def test_a_failing_poststop_does_not_keep_a_container(runtime: Runtime, bundle: Bundle, agent: Agent) -> None:
    section = hooks(agent.path)
    section["poststop"][0]["args"][2] = str(agent.path.with_name("nobody.sock"))
    bundle.write(hooks=section, arguments=ECHO)
    identifier = runtime.new_id()
    assert "the container ran" in runtime("run", "--bundle", str(bundle.path), identifier).stdout
    assert identifier not in runtime("list", "--quiet").stdout


def test_without_an_agent_nothing_runs(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    assert "no agent listens on" in refused_output(runtime, bundle, tmp_path, hooks(tmp_path / "none"))


def test_an_agent_that_stalls_refuses_at_the_deadline(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    release = threading.Event()

    def stall(connection: socket.socket) -> None:
        read_request(connection)
        release.wait(60)

    try:
        with raw_agent(tmp_path / "s", stall):
            section = hooks(tmp_path / "s", timeout="0.5", createRuntime="createRuntime")
            output = refused_output(runtime, bundle, tmp_path, section)
            release.set()
    finally:
        release.set()
    assert "the agent did not answer within 0.5 s" in output


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "hung up before its answer was complete"),
        (b"HBK1", "hung up before its answer was complete"),
        (b"HBK1\0\0\0\0\x05\0\0\0four", "hung up before its answer was complete"),
        (b"HBK1\x02\0\0\0\0\0\0\0", "malformed"),
        (b"HBK1\0\0\x01\0\0\0\0\0", "malformed"),
        (b"HBK1\0\0\0\0\x01\x10\0\0", "malformed"),
        (b"HBK1\0\0\0\0\0\0\0\0more", "malformed"),
        (b"HBK1\0\0\0\0\x01\0\0\0\xff", "malformed"),
        (b"accepted\n", "malformed"),
    ],
)
def test_an_answer_that_is_none_refuses(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, answer: bytes, reason: str
) -> None:
    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    with raw_agent(tmp_path / "s", behave):
        section = hooks(tmp_path / "s", createRuntime="createRuntime")
        assert reason in refused_output(runtime, bundle, tmp_path, section)


def test_more_annotations_than_a_pipe_holds_do_not_block(runtime: Runtime, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks=hooks(agent.path), arguments=ECHO, annotations={f"key{n}": "x" * 1000 for n in range(300)})
    identifier = runtime.new_id()
    assert runtime("run", "--bundle", str(bundle.path), identifier).returncode == 0
    assert len(agent.asked[0][1].annotations) == 300


def test_more_annotations_than_are_taken_refuse(runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path) -> None:
    bundle.write(
        hooks=hooks(agent.path),
        arguments=ECHO,
        annotations={"key": "x" * (1 << 20), **stderr_file(runtime, tmp_path / "said")},
    )
    result = runtime("run", "--bundle", str(bundle.path), runtime.new_id())
    said = tmp_path / "said"
    assert result.returncode != 0
    assert "at most 1048576 are taken" in result.stdout + (said.read_text() if said.exists() else "")
    assert agent.stages(runtime.containers[-1]).count(Stage.CREATE_RUNTIME) == 0


def test_an_unset_hook_environment_and_a_poisoned_one_change_nothing(
    runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path
) -> None:
    (tmp_path / "_socket.py").write_text("raise SystemExit(0)")
    (tmp_path / "select.py").write_text("raise SystemExit(0)")
    poison = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": "/nonexistent",
        "LD_LIBRARY_PATH": "/nonexistent",
        "PATH": "",
    }
    agent.answer = HookAnswer(accepted=False, message="no")
    section = hooks(agent.path)
    section["createRuntime"][0]["env"] = [f"{name}={value}" for name, value in poison.items()]
    assert "refused: no." in refused_output(runtime, bundle, tmp_path, section)
    agent.answer = HookAnswer(accepted=True)
    bundle.write(hooks=section, arguments=ECHO)
    assert runtime("run", "--bundle", str(bundle.path), runtime.new_id()).returncode == 0


def test_a_refused_prestart_kills_the_init_of_a_runtime_too(
    runtime: Runtime, bundle: Bundle, agent: Agent, tmp_path: Path
) -> None:
    agent.answer = HookAnswer(accepted=False, message="no")
    output = refused_output(runtime, bundle, tmp_path, hooks(agent.path, prestart="prestart"))
    pid = agent.asked[0][1].pid
    assert f"refused: no; its init (pid {pid}) was killed." in output
