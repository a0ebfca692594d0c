# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the hook socket: who may call, what a broken caller gets, and that nobody holds up another."""

from __future__ import annotations

import os
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.api import hook_socket
from guest_agent.api.hook_socket import (
    FrameError,
    HookAnswer,
    HookServer,
    HookSocketError,
    Peer,
    Stage,
    decode_answer,
    decode_request_header,
    encode_request,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = encode_request(Stage.CREATE_RUNTIME, b'{"id":"web"}')


def accept(_stage: Stage, _state: bytes, _peer: Peer) -> HookAnswer:
    return HookAnswer(accepted=True, message="in force")


def start(
    path: Path,
    handler: Callable[[Stage, bytes, Peer], HookAnswer] = accept,
    peer_check: Callable[[Peer], str | None] | None = None,
    **options: float,
) -> HookServer:
    """Serve for the user who runs the tests; on a machine it is root."""
    return serve(path, handler, peer_check, required_uid=os.getuid(), **options)  # type: ignore[arg-type]


def converse(path: Path, request: bytes = REQUEST) -> HookAnswer:
    """Send a request, and read the answer up to the end of the stream."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        with suppress(BrokenPipeError):  # the server may have answered and gone before it read
            client.sendall(request)
        return read_answer(client)


def read_answer(client: socket.socket) -> HookAnswer:
    data = b""
    try:
        while chunk := client.recv(65536):
            data += chunk
    except ConnectionResetError:  # the server left bytes of a broken request unread
        pass
    return decode_answer(data)


def test_a_request_reaches_the_handler_as_it_was_sent(tmp_path: Path) -> None:
    seen = []

    def handler(stage: Stage, state: bytes, peer: Peer) -> HookAnswer:
        seen.append((stage, state, peer.pid, peer.uid, peer.gid, peer.alive()))
        return HookAnswer(accepted=False, message="no policy covers it")

    state = bytes(range(256)) * 4096
    with start(tmp_path / "s", handler):
        answer = converse(tmp_path / "s", encode_request(Stage.POSTSTOP, state))
    assert answer == HookAnswer(accepted=False, message="no policy covers it")
    assert seen == [(Stage.POSTSTOP, state, os.getpid(), os.getuid(), os.getgid(), True)]


def test_the_peer_is_the_process_that_connected(tmp_path: Path) -> None:
    start_times = []

    def check(peer: Peer) -> None:
        start_times.append(peer.start_time)
        assert os.get_inheritable(peer.pidfd) is False

    with start(tmp_path / "s", accept, check):
        assert converse(tmp_path / "s").accepted
    assert start_times == [hook_socket.read_start_time(os.getpid())]


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"", "ended after 0 of 12"),
        (REQUEST[:11], "ended after 11 of 12"),
        (REQUEST[:-1], "ended after 11 of 12 bytes"),
        (b"HBK2" + REQUEST[4:], "not a request of protocol HBK1"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a request of protocol HBK1"),
        (b"HBK1\0" + REQUEST[5:], "unknown stage 0"),
        (b"HBK1\x04" + REQUEST[5:], "unknown stage 4"),
        (b"HBK1\x01\0\0\x01" + REQUEST[8:], "not a request of protocol HBK1"),
        (b"HBK1\x01\0\0\0" + (0).to_bytes(4, "little"), "0 bytes, expected 1 to 1048576"),
        (b"HBK1\x01\0\0\0" + ((1 << 20) + 1).to_bytes(4, "little") + b"x", "1048577 bytes"),
        (b"HBK1\x01\0\0\0\xff\xff\xff\xff" + b"x", "4294967295 bytes"),
    ],
)
def test_a_broken_request_is_refused_with_its_reason(tmp_path: Path, request_bytes: bytes, reason: str) -> None:
    with start(tmp_path / "s") as server, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(server.path))
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        answer = read_answer(client)
    assert not answer.accepted
    assert reason in answer.message


@given(st.binary(max_size=24) | st.binary(max_size=8).map(lambda tail: b"HBK1" + tail))
def test_a_header_is_taken_only_as_the_protocol_has_it(header: bytes) -> None:
    try:
        stage, length = decode_request_header(header)
    except FrameError:
        return
    assert header == b"HBK1" + bytes((stage, 0, 0, 0)) + length.to_bytes(4, "little")
    assert 0 < length <= 1 << 20


def test_a_silent_client_is_refused_at_the_deadline(tmp_path: Path) -> None:
    with start(tmp_path / "s", deadline=0.2), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(tmp_path / "s"))
        client.sendall(REQUEST[:20])
        assert "not complete within 0.2 s" in read_answer(client).message


def test_a_slow_handler_holds_up_nobody_else(tmp_path: Path) -> None:
    release = threading.Event()
    entered = threading.Event()

    def handler(_stage: Stage, state: bytes, _peer: Peer) -> HookAnswer:
        if state == b"slow":
            entered.set()
            assert release.wait(60)
        return HookAnswer(accepted=True, message=state.decode())

    with start(tmp_path / "s", handler), socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(60)
        slow.connect(str(tmp_path / "s"))
        slow.sendall(encode_request(Stage.PRESTART, b"slow"))
        assert entered.wait(60)
        assert converse(tmp_path / "s", encode_request(Stage.PRESTART, b"quick")).message == "quick"
        release.set()
        assert read_answer(slow).message == "slow"


def test_connections_are_bounded_and_the_next_waits(tmp_path: Path) -> None:
    release = threading.Event()
    running: list[int] = []
    most: list[int] = []
    both_in = threading.Semaphore(0)

    def handler(_stage: Stage, _state: bytes, _peer: Peer) -> HookAnswer:
        running.append(1)
        most.append(len(running))
        both_in.release()
        assert release.wait(60)
        running.pop()
        return HookAnswer(accepted=True)

    with start(tmp_path / "s", handler, maximum_connections=2):
        clients = [threading.Thread(target=converse, args=(tmp_path / "s",)) for _ in range(5)]
        for client in clients:
            client.start()
        for _ in range(2):
            assert both_in.acquire(timeout=60)
        release.set()
        for client in clients:
            client.join(60)
    assert len(most) == 5
    assert max(most) == 2


@pytest.mark.parametrize("fault", ["raises", "times out", "returns None"])
def test_a_faulty_handler_is_an_internal_error_and_a_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    def handler(_stage: Stage, _state: bytes, _peer: Peer) -> HookAnswer:
        if fault == "raises":
            raise KeyError(fault)
        if fault == "times out":
            raise TimeoutError(fault)
        return None  # type: ignore[return-value]

    with start(tmp_path / "s", handler):
        answer = converse(tmp_path / "s")
        assert not converse(tmp_path / "s").accepted
    assert answer == HookAnswer(accepted=False, message="internal error in the agent, see its log")
    assert "internal error while answering" in caplog.text


def test_a_refused_peer_is_not_listened_to(tmp_path: Path) -> None:
    def never(_stage: Stage, _state: bytes, _peer: Peer) -> HookAnswer:
        pytest.fail("the handler was asked")

    with start(tmp_path / "s", never, lambda peer: f"pid {peer.pid} is inside workload 7"):
        answer = converse(tmp_path / "s")
    assert answer == HookAnswer(accepted=False, message=f"pid {os.getpid()} is inside workload 7")


def test_a_faulty_peer_check_refuses(tmp_path: Path) -> None:
    def check(_peer: Peer) -> str | None:
        raise OSError

    with start(tmp_path / "s", accept, check):
        assert "internal error" in converse(tmp_path / "s").message


def test_another_uid_is_refused(tmp_path: Path) -> None:
    with serve(tmp_path / "s", accept, required_uid=os.getuid() + 1):
        answer = converse(tmp_path / "s")
    assert not answer.accepted
    assert f"it runs as uid {os.getuid()}, expected {os.getuid() + 1}" in answer.message


def test_a_kernel_without_peer_pidfds_is_served_from_the_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_socket, "SO_PEERPIDFD", 0x7FFF)
    with start(tmp_path / "s"):
        assert converse(tmp_path / "s").accepted


def test_there_a_recycled_pid_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_socket, "SO_PEERPIDFD", 0x7FFF)
    monkeypatch.setattr(hook_socket, "read_start_time", lambda _pid: 1 << 60)
    with start(tmp_path / "s"):
        answer = converse(tmp_path / "s")
    assert not answer.accepted
    assert "started after the connection" in answer.message


@pytest.mark.parametrize("option", [hook_socket.SO_PEERPIDFD, 0x7FFF])
def test_a_caller_that_has_ended_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: int) -> None:
    monkeypatch.setattr(hook_socket, "SO_PEERPIDFD", option)
    with start(tmp_path / "s"):
        client = socket.socket(socket.AF_UNIX)
        child = os.fork()
        if child == 0:
            client.connect(str(tmp_path / "s"))
            os._exit(0)
        os.waitpid(child, 0)
        with client:
            client.settimeout(60)
            with suppress(BrokenPipeError):  # as above: refused before it read
                client.sendall(REQUEST)
            answer = read_answer(client)
    assert not answer.accepted


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    server = start(tmp_path / "s", accept, lambda _peer: None)
    for request in (REQUEST, b"HBK2" + REQUEST[4:], REQUEST) * 10:
        converse(tmp_path / "s", request)
    server.close()
    server.close()
    for thread in threading.enumerate():
        if thread.name == "hook-connection":
            thread.join(60)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_socket_and_its_directory_are_ours_alone(tmp_path: Path) -> None:
    os.umask(os.umask(0))  # the mode must not depend on it
    path = tmp_path / "run" / "hook.sock"
    previous = os.umask(0)
    try:
        server = start(path)
    finally:
        os.umask(previous)
    with server:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    with start(tmp_path / "s"):
        assert converse(tmp_path / "s").accepted


def test_a_living_socket_is_not_taken_over(tmp_path: Path) -> None:
    with start(tmp_path / "s"):
        with pytest.raises(HookSocketError, match="another process listens"):
            start(tmp_path / "s")
        assert converse(tmp_path / "s").accepted


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_not_a_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HookSocketError, match="is not a socket"):
        start(path)
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(HookSocketError, match="can be written by others"):
        start(tmp_path / "run" / "s")


def test_a_directory_behind_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to("real")
    with pytest.raises(HookSocketError, match="is not a directory"):
        start(tmp_path / "run" / "s")


def test_a_missing_parent_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(HookSocketError, match=r"cannot listen on .*/a/b/s"):
        start(tmp_path / "a" / "b" / "s")


def test_closing_leaves_a_successors_socket(tmp_path: Path) -> None:
    server = start(tmp_path / "s")
    (tmp_path / "s").unlink()
    with start(tmp_path / "s"):
        server.close()
        assert converse(tmp_path / "s").accepted
