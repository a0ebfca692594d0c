# SPDX-License-Identifier: Apache-2.0
"""--fail-open: opens for a missing agent on a machine that says "host" beyond doubt, and in no other case."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .conftest import HOOK, load_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

PROGRAM = HOOK.with_name("hauberk-fail-open")
STATE = b'{"ociVersion":"1.0","id":"web","status":"creating","pid":0,"bundle":"/b"}'
ACCEPTED_SETTINGS = [
    b"mode: host",
    b"mode: host\n",
    b"# this machine\n\nmode: host\nalertLog: /var/log/hauberk/alerts.jsonl\ntableRegions: 8\n",
    b"managers:\n  - /usr/sbin/runc\n  - /usr/bin/conmon\nmode: host\nhelpers:\n- /usr/libexec/hauberk/hauberk-hook\n",
    b"# mode: sealed\nmode: host\n",
]
REFUSED_SETTINGS = {
    "nothing": b"",
    "sealed": b"mode: sealed\n",
    "host in a comment": b"# mode: host\nmode: sealed\n",
    "host in a comment alone": b"#mode: host\n",
    "twice": b"mode: host\nmode: host\n",
    "both": b"mode: host\nmode: sealed\n",
    "both, the other way": b"mode: sealed\nmode: host\n",
    "quoted again": b'mode: host\n"mode": sealed\n',
    "escaped again": b'mode: host\n"\\x6dode": sealed\n',
    "explicit key": b"mode: host\n? mode\n: sealed\n",
    "spaced key": b"mode: host\nmode : sealed\n",
    "tagged key": b"mode: host\n!!str mode: sealed\n",
    "anchored key": b"mode: host\n&a mode: sealed\n",
    "merged": b"mode: host\n<<: {mode: sealed}\n",
    "tab before": b"\tmode: host\n",
    "tab between": b"mode:\thost\n",
    "tab behind": b"mode: host\t\n",
    "space before": b" mode: host\n",
    "space behind": b"mode: host \n",
    "two spaces": b"mode:  host\n",
    "no space": b"mode:host\n",
    "comment behind": b"mode: host # really\n",
    "quoted value": b"mode: 'host'\n",
    "CRLF": b"mode: host\r\n",
    "CR": b"# x\rmode: sealed\nmode: host\n",
    "NEL": "# x\u0085mode: sealed\nmode: host\n".encode(),
    "line separator": "# x\u2028mode: sealed\nmode: host\n".encode(),
    "byte order mark": b"\xef\xbb\xbfmode: host\n",
    "UTF-16": "mode: host\n".encode("utf-16"),
    "NUL": b"mode: host\n\0",
    "document marker": b"---\nmode: host\n",
    "second document": b"mode: host\n---\nmode: sealed\n",
    "document end": b"mode: host\n...\n",
    "directive": b"%YAML 1.1\n---\nmode: host\n",
    "flow": b"{mode: host}\n",
    "continued by a list": b"mode: host\n- sealed\n",
    "continued by an indented list": b"mode: host\n  - sealed\n",
    "continued": b"mode: host\n  sealed\n",
    "continued behind an empty line": b"mode: host\n\n  sealed\n",
    "in a block": b"alertLog: |\nmode: host\n",
    "in an indented block": b"alertLog: |\n  x\nmode: host\n",
    "in a string": b'alertLog: "\nmode: host\n"\n',
    "in a quoted key": b"'alertLog:\nmode: host\n': x\n",
    "in a list": b"helpers: [\nmode: host\n]\n",
    "upper case": b"Mode: host\n",
    "other value": b"mode: hosted\n",
    "alias": b"managers: &a\n- x\nmode: *a\n",
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program(PROGRAM)


@pytest.fixture
def machine(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine in host mode that no agent has run on since boot; the tests' user is its root."""
    etc = tmp_path / "etc"
    (etc / "hauberk").mkdir(parents=True, mode=0o755)
    (etc / "hauberk" / "agent.yaml").write_bytes(b"mode: host\n")
    (etc / "hauberk" / "agent.yaml").chmod(0o600)
    monkeypatch.setattr(program, "CONFIGURATION", (str(etc), "hauberk", "agent.yaml"))
    monkeypatch.setattr(program, "PINS", str(tmp_path / "pins"))
    monkeypatch.setattr(program, "HOOK", str(HOOK))
    monkeypatch.setattr(program, "OWNER", os.geteuid())
    monkeypatch.setattr(program.posix, "readlink", lambda _path: "mnt:[1]")
    return tmp_path


@pytest.mark.parametrize("data", ACCEPTED_SETTINGS)
def test_plain_settings_that_say_host_are_taken(program: ModuleType, data: bytes) -> None:
    program.check_mode(data)


@pytest.mark.parametrize("name", REFUSED_SETTINGS)
def test_anything_unusual_counts_as_sealed(program: ModuleType, name: str) -> None:
    with pytest.raises(program.Closed):
        program.check_mode(REFUSED_SETTINGS[name])


LINES = st.sampled_from(
    [
        "mode: host", "mode: sealed", "mode:", "host", "  host", "- host", "  - host", "x:", "x: y", "x: |", "x: >",
        'x: "', "x: '", '"', "'", "x: [", "]", "x: {", "}", "---", "...", "#", "# mode: host", "", " ", "? mode",
        ": host", "<<: *a", "x: &a", "!!str mode: host", "\tmode: host", "mode: host\r", "x: \\", "mode: host # x",
        "x:y", "mode:: host",
    ]
)  # fmt: skip


@given(st.lists(LINES | st.text(st.sampled_from("mode: hst-#|>[]{}&*!'\"\n\r\t x0/"), max_size=12), max_size=8))
@example(["mode: host", "x: |"])
@settings(max_examples=1500)
def test_what_is_taken_is_what_yaml_reads(program: ModuleType, lines: list[str]) -> None:
    data = "\n".join(lines).encode()
    try:
        program.check_mode(data)
    except program.Closed:
        return
    try:
        read = yaml.safe_load(data)
    except yaml.YAMLError:
        return  # an agent does not start with it in any mode
    assert read["mode"] == "host"


def test_a_machine_in_host_mode_opens(program: ModuleType, machine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert machine
    assert program.main("web", "no agent listens on /s") == 0
    line = capfd.readouterr().err
    assert line.startswith("hauberk-hook: container web STARTS UNPROTECTED: no agent listens on /s, and this machine")
    assert line.count("\n") == 1


@pytest.mark.parametrize("mapped", [b"0 1000 1\n", None])
def test_a_user_namespace_or_none_that_can_be_told_never_opens(
    program: ModuleType, machine: Path, monkeypatch: pytest.MonkeyPatch, mapped: bytes | None
) -> None:
    copy, mapping = machine / "hook", machine / "uid_map"
    copy.write_text(HOOK.read_text().replace("/proc/self/uid_map", str(mapping)))
    monkeypatch.setattr(program, "HOOK", str(copy))
    mapping.write_bytes(b"0 0 4294967295\n")
    assert program.main("web", "no agent") == 0
    mapping.unlink()
    if mapped is not None:
        mapping.write_bytes(mapped)
    assert program.main("web", "no agent") == 1


def test_an_agent_in_host_mode_that_died_opens(program: ModuleType, machine: Path) -> None:
    (machine / "pins" / "host").mkdir(parents=True)
    assert program.decide() == ""


def test_a_sealed_kernel_never_opens(program: ModuleType, machine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (machine / "pins").mkdir()
    assert program.main("web", "no agent listens on /s") == 1
    assert (
        "refused: no agent listens on /s; --fail-open has no effect: the kernel is sealed. " in capfd.readouterr().err
    )


def test_pins_that_cannot_be_looked_at_never_open(
    program: ModuleType, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "pins").write_text("")
    monkeypatch.setattr(program, "PINS", str(machine / "pins" / "below"))
    assert "cannot be read" in program.decide()


def test_another_mount_namespace_never_opens(
    program: ModuleType, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine
    monkeypatch.setattr(program.posix, "readlink", lambda path: path)
    assert "own mounts" in program.decide()


def linked_file(etc: Path) -> None:
    (etc / "hauberk" / "agent.yaml").rename(etc / "real.yaml")
    (etc / "hauberk" / "agent.yaml").symlink_to(etc / "real.yaml")


def linked_directory(etc: Path) -> None:
    (etc / "hauberk").rename(etc / "real")
    (etc / "hauberk").symlink_to("real")


def fifo(etc: Path) -> None:
    (etc / "hauberk" / "agent.yaml").unlink()
    os.mkfifo(etc / "hauberk" / "agent.yaml")


def directory(etc: Path) -> None:
    (etc / "hauberk" / "agent.yaml").unlink()
    (etc / "hauberk" / "agent.yaml").mkdir()


TRICKS: dict[str, Callable[[Path], object]] = {
    "missing": lambda etc: (etc / "hauberk" / "agent.yaml").unlink(),
    "linked": linked_file,
    "linked directory": linked_directory,
    "group may write": lambda etc: (etc / "hauberk" / "agent.yaml").chmod(0o620),
    "others may write": lambda etc: (etc / "hauberk" / "agent.yaml").chmod(0o602),
    "directory others may write": lambda etc: (etc / "hauberk").chmod(0o777),
    "sticky directory others may write": lambda etc: (etc / "hauberk").chmod(0o1777),
    "directory above others may write": lambda etc: etc.chmod(0o775),
    "a directory": directory,
    "a fifo": fifo,
    "large": lambda etc: (etc / "hauberk" / "agent.yaml").write_bytes(b"mode: host\n" + b"#\n" * 40000),
    "sealed": lambda etc: (etc / "hauberk" / "agent.yaml").write_bytes(b"mode: sealed\n"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_settings_that_anybody_could_have_made_never_open(program: ModuleType, machine: Path, trick: str) -> None:
    assert program.decide() == ""
    TRICKS[trick](machine / "etc")
    assert program.decide() != ""


def test_settings_of_another_user_never_open(
    program: ModuleType, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine
    monkeypatch.setattr(program, "OWNER", os.geteuid() + 1)
    assert "must be root's" in program.decide()


# ---- the hook: when it hands over at all ----


@pytest.fixture
def opening_hook(tmp_path: Path) -> Path:
    """The hook as it is, but for the program it hands over to: one that always accepts, and says that it was asked."""
    opener = tmp_path / "opener"
    opener.write_text('#!/bin/sh\nprintf "%s|" "$@" >&2\nexit 0\n')
    opener.chmod(0o755)
    copy = tmp_path / "hauberk-hook"
    copy.write_text(HOOK.read_text().replace("/usr/libexec/hauberk/hauberk-fail-open", str(opener)))
    copy.chmod(0o755)
    return copy


def run(hook: Path, path: Path, *more: str, state: bytes = STATE) -> tuple[int, str]:
    arguments = [str(hook), "--fail-open", "--socket", str(path), *more, "createRuntime"]
    result = subprocess.run(arguments, input=state, capture_output=True, timeout=60, check=False, env={})
    return result.returncode, result.stderr.decode()


def test_it_hands_over_when_nobody_listens(opening_hook: Path, tmp_path: Path) -> None:
    assert run(opening_hook, tmp_path / "none") == (0, f"web|no agent listens on {tmp_path / 'none'}|")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    assert run(opening_hook, tmp_path / "stale")[0] == 0


def test_without_the_option_it_does_not(opening_hook: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [str(opening_hook), "--socket", str(tmp_path / "none"), "createRuntime"],
        input=STATE, capture_output=True, timeout=60, check=False, env={},
    )  # fmt: skip
    assert result.returncode == 1
    assert b"|" not in result.stderr


def test_without_the_program_it_refuses(tmp_path: Path) -> None:
    copy = tmp_path / "hauberk-hook"
    copy.write_text(HOOK.read_text().replace("/usr/libexec/hauberk/hauberk-fail-open", str(tmp_path / "absent")))
    copy.chmod(0o755)
    status, line = run(copy, tmp_path / "none")
    assert status == 1
    assert "no agent listens" in line
    assert "--fail-open has no effect" in line


@pytest.mark.parametrize(
    "answer",
    [b"", b"HBK1", b"HBK1\x01\0\0\0\x02\0\0\0no", b"HBK1\x02\0\0\0\0\0\0\0", b"accepted\n", None],
)
def test_an_agent_that_is_there_is_never_gone_past(opening_hook: Path, tmp_path: Path, answer: bytes | None) -> None:
    """Refused, malformed, hung up, silent: none of these is a missing agent."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        release = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if answer is None:
                    release.wait(60)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            status, line = run(opening_hook, tmp_path / "s", "--timeout", "1" if answer is None else "30")
        finally:
            release.set()
            thread.join(60)
    assert status == 1
    assert "|" not in line


def test_a_broken_state_is_never_gone_past(opening_hook: Path, tmp_path: Path) -> None:
    status, line = run(opening_hook, tmp_path / "none", state=b"")
    assert status == 1
    assert "no container state" in line


def test_a_socket_that_may_not_be_reached_is_no_missing_agent(opening_hook: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, line = run(opening_hook, tmp_path / "file" / "s")
    assert status == 1
    assert "|" not in line


def test_it_is_shipped_as_an_executable_of_the_system_interpreter() -> None:
    assert PROGRAM.read_bytes().startswith(b"#!/usr/bin/python3 -ISE\n")
    assert PROGRAM.stat().st_mode & 0o777 == 0o755
