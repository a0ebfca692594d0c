# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the hook protocol: one request, one answer, over a Unix stream socket only root can reach.

Request: ``HBK1``, u8 stage (1 createRuntime, 2 prestart, 3 poststop), three zero bytes, u32 little-endian length, the
OCI state exactly as the runtime sent it. Answer: ``HBK1``, u8 verdict (0 accepted, 1 refused), three zero bytes, u32
length, one line of UTF-8. The state is not looked into here.

Every connection has a thread of its own, and at most ``maximum_connections`` exist: a slow handler holds up nobody
else, a silent client is cut off at the deadline, and further clients wait in the kernel's queue. Whatever goes wrong,
the client gets a refusal or an end of file, never an "accepted".

The peer is pinned by a pidfd before anything it sent is read. Kernels from 6.5 on hand out that of the very process
that connected (``SO_PEERPIDFD``). Before, the pidfd is opened from the recorded pid, and the process must have been
started before the connection was accepted, so that a recycled pid is noticed. The recorded uid cannot be recycled
either way.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

logger = logging.getLogger(__name__)

MAGIC = b"HBK1"
HEADER = struct.Struct("<4sB3sI")
MAXIMUM_STATE_BYTES = 1 << 20
MAXIMUM_MESSAGE_BYTES = 4096
MAXIMUM_CONNECTIONS = 64
DEADLINE_SECONDS = 8.0
BACKLOG = 128
SO_PEERPIDFD = 77  # Linux 6.5, asm-generic; socket.SO_PEERPIDFD is not in Python 3.11
_RESERVED = bytes(3)
_CREDENTIALS = struct.Struct("=iII")
_STAT_START_TIME = 19  # field 22 of /proc/PID/stat, counted from field 3, the first one after the command name
_ACCEPT_PAUSE_SECONDS = 0.1
_OUR_MODE = 0o600
_DIRECTORY_MODE = 0o700


class Stage(IntEnum):
    """The moment of the container's life the runtime reports; the numbers are those on the wire."""

    CREATE_RUNTIME = 1
    PRESTART = 2
    POSTSTOP = 3


class HookSocketError(Exception):
    """The socket could not be set up; the message says what was found, what was expected and what to do."""


class FrameError(ValueError):
    """A request broke the protocol; the message says how. The client is refused with it."""


@dataclass(frozen=True, slots=True)
class HookAnswer:
    """What the runtime is told: ``accepted`` lets the container go on; ``message`` (one line) says why it may not."""

    accepted: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel recorded it then.

    ``pidfd`` refers to that process for as long as the handler runs and is closed afterwards: a handler that needs it
    longer duplicates it. ``start_time`` is in clock ticks since boot (field 22 of ``/proc/PID/stat``).
    """

    pid: int
    uid: int
    gid: int
    pidfd: int
    start_time: int

    def alive(self) -> bool:
        """Whether the process still runs; a pid of a process that has ended may already be somebody else's."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)


def encode_request(stage: Stage, state: bytes) -> bytes:
    """Return the request frame; raises FrameError when the state is empty or larger than 1 MiB."""
    _check_length(len(state))
    return HEADER.pack(MAGIC, stage, _RESERVED, len(state)) + state


def decode_request_header(header: bytes) -> tuple[Stage, int]:
    """Return the stage and the length in bytes of the state that follows; raises FrameError for anything else."""
    if len(header) != HEADER.size:
        message = f"the request ended after {len(header)} of {HEADER.size} header bytes"
        raise FrameError(message)
    magic, stage, reserved, length = HEADER.unpack(header)
    if magic != MAGIC or reserved != _RESERVED:
        message = f"this is not a request of protocol HBK1 (it begins with {header[:8].hex()})"
        raise FrameError(message)
    try:
        known = Stage(stage)
    except ValueError:
        message = f"unknown stage {stage}, expected 1 (createRuntime), 2 (prestart) or 3 (poststop)"
        raise FrameError(message) from None
    _check_length(length)
    return known, length


def encode_answer(answer: HookAnswer) -> bytes:
    """Return the answer frame. The message is made one line, and cut to 4096 bytes at a character's boundary."""
    line = "".join(character if character.isprintable() else " " for character in answer.message)
    message = line.encode("utf-8", "replace")[:MAXIMUM_MESSAGE_BYTES].decode("utf-8", "ignore").encode()
    return HEADER.pack(MAGIC, 0 if answer.accepted else 1, _RESERVED, len(message)) + message


def decode_answer(frame: bytes) -> HookAnswer:
    """Return the answer of a whole frame; raises FrameError (to be taken as a refusal) for anything else."""
    if len(frame) < HEADER.size:
        message = f"the answer ended after {len(frame)} of {HEADER.size} header bytes"
        raise FrameError(message)
    magic, verdict, reserved, length = HEADER.unpack_from(frame)
    if magic != MAGIC or reserved != _RESERVED or verdict > 1 or length > MAXIMUM_MESSAGE_BYTES:
        message = f"this is not an answer of protocol HBK1 (it begins with {frame[: HEADER.size].hex()})"
        raise FrameError(message)
    if len(frame) != HEADER.size + length:
        message = f"the answer has {len(frame) - HEADER.size} bytes of message, its header says {length}"
        raise FrameError(message)
    try:
        return HookAnswer(verdict == 0, frame[HEADER.size :].decode())
    except UnicodeDecodeError as error:
        message = f"the answer's message is not UTF-8: {error}"
        raise FrameError(message) from None


def serve(  # noqa: PLR0913 - the last three have defaults that only tests and unusual hosts change
    path: str | Path,
    handler: Callable[[Stage, bytes, Peer], HookAnswer],
    peer_check: Callable[[Peer], str | None] | None = None,
    *,
    deadline: float = DEADLINE_SECONDS,
    maximum_connections: int = MAXIMUM_CONNECTIONS,
    required_uid: int = 0,
) -> HookServer:
    """Create the socket, start to answer hooks in threads of its own, and return the server to ``close()`` in the end.

    ``handler(stage, state, peer)`` runs in the connection's thread, several at a time. ``peer_check(peer)`` runs before
    anything is read and returns a reason to refuse the peer, or None. ``deadline`` (seconds) bounds receiving a request
    and, again, sending the answer; the handler bounds itself. Raises HookSocketError.
    """
    server = HookServer(
        Path(path),
        handler,
        peer_check,
        deadline=deadline,
        maximum_connections=maximum_connections,
        required_uid=required_uid,
    )
    server.start()
    return server


class HookServer:
    """A listening hook socket. ``start()`` begins to accept, ``close()`` ends it; usable as a context manager."""

    def __init__(  # noqa: PLR0913 - see serve()
        self,
        path: Path,
        handler: Callable[[Stage, bytes, Peer], HookAnswer],
        peer_check: Callable[[Peer], str | None] | None,
        *,
        deadline: float,
        maximum_connections: int,
        required_uid: int,
    ) -> None:
        """Create the socket and listen; raises HookSocketError."""
        self.path = path
        self._handler = handler
        self._peer_check = peer_check
        self._deadline = deadline
        self._required_uid = required_uid
        self._slots = threading.BoundedSemaphore(maximum_connections)
        self._closing = threading.Event()
        self._listener = _listen(path)
        found = path.lstat()
        self._identity = (found.st_dev, found.st_ino)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._acceptor = threading.Thread(target=self._accept_loop, name="hook-accept", daemon=True)

    def start(self) -> None:
        """Begin to accept connections."""
        self._acceptor.start()

    def close(self) -> None:
        """Stop accepting and remove the socket. Handlers that run still answer; calling it twice is harmless."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.write(self._wake_write, b"x")
        if self._acceptor.is_alive():
            self._acceptor.join()
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        with suppress(FileNotFoundError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()

    def __enter__(self) -> Self:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the server."""
        self.close()

    def _accept_loop(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._closing.is_set():
            if not self._slots.acquire(timeout=_ACCEPT_PAUSE_SECONDS):
                continue
            connection: socket.socket | None = None
            try:
                poll.poll()
                if self._closing.is_set():
                    return
                accepted_at = time.clock_gettime(time.CLOCK_BOOTTIME)
                connection = self._listener.accept()[0]
                threading.Thread(
                    target=self._converse, args=(connection, accepted_at), name="hook-connection", daemon=True
                ).start()
            except (OSError, RuntimeError) as error:
                # Out of descriptors or threads: the hook is refused by the end of file, or waits in the queue.
                if connection is not None:
                    connection.close()
                self._slots.release()
                if not (isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ECONNABORTED)):
                    logger.warning("hook socket: a connection could not be taken: %s", error)
                    self._closing.wait(_ACCEPT_PAUSE_SECONDS)

    def _converse(self, connection: socket.socket, accepted_at: float) -> None:
        try:
            with connection:
                answer = self._answer(connection, accepted_at)
                connection.settimeout(self._deadline)
                try:
                    connection.sendall(encode_answer(answer))
                except OSError as error:
                    logger.warning("hook socket: the hook left before its answer (%s): the container is refused", error)
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket, accepted_at: float) -> HookAnswer:
        try:
            peer = _identify(connection, accepted_at, self._required_uid)
        except (OSError, PeerError) as error:
            return _refused(f"the calling process is not trusted: {error}")
        try:
            return self._handle(connection, peer)
        except FrameError as error:
            return _refused(str(error))
        except TimeoutError:
            return _refused(f"the request was not complete within {self._deadline:g} s")
        except Exception:
            # The boundary of the handler: whatever it did not foresee becomes a refusal that is logged.
            logger.exception("hook socket: internal error while answering pid %d", peer.pid)
            return HookAnswer(accepted=False, message="internal error in the agent, see its log")
        finally:
            os.close(peer.pidfd)

    def _handle(self, connection: socket.socket, peer: Peer) -> HookAnswer:
        reason = self._peer_check(peer) if self._peer_check is not None else None
        if reason is not None:
            return _refused(reason)
        stage, state = _receive(connection, self._deadline)
        if not peer.alive():
            return _refused("the calling process has ended")
        try:
            answer: object = self._handler(stage, state, peer)
        except TimeoutError as error:
            message = "the handler ran into a time limit of its own"
            raise RuntimeError(message) from error
        if not isinstance(answer, HookAnswer):
            message = f"the handler returned {type(answer).__name__}, expected HookAnswer"
            raise TypeError(message)
        return answer


class PeerError(Exception):
    """The process at the other end cannot be told or is not entitled; the message says why."""


def _check_length(length: int) -> None:
    if not 0 < length <= MAXIMUM_STATE_BYTES:
        message = f"the container state has {length} bytes, expected 1 to {MAXIMUM_STATE_BYTES}"
        raise FrameError(message)


def _refused(message: str) -> HookAnswer:
    logger.warning("hook socket: refused: %s", message)
    return HookAnswer(accepted=False, message=message)


def _receive(connection: socket.socket, seconds: float) -> tuple[Stage, bytes]:
    """Read one request within so many seconds; raises FrameError, TimeoutError, OSError."""
    deadline = time.monotonic() + seconds
    stage, length = decode_request_header(_receive_exactly(connection, HEADER.size, deadline))
    state = _receive_exactly(connection, length, deadline)
    if len(state) != length:
        message = f"the container state ended after {len(state)} of {length} bytes"
        raise FrameError(message)
    return stage, state


def _receive_exactly(connection: socket.socket, length: int, deadline: float) -> bytes:
    """Return ``length`` bytes, fewer only at the end of the stream."""
    data = bytearray()
    while len(data) < length:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(min(length - len(data), 1 << 16))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _identify(connection: socket.socket, accepted_at: float, required_uid: int) -> Peer:
    """Pin the process that connected; raises PeerError or OSError. The caller closes ``pidfd``."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    if uid != required_uid:
        message = f"it runs as uid {uid}, expected {required_uid}"
        raise PeerError(message)
    if pid <= 0:
        message = "it is outside this PID namespace, run the agent in the host's"
        raise PeerError(message)
    pidfd, exact = _open_pidfd(connection, pid)
    try:
        start_time = read_start_time(pid)
        peer = Peer(pid, uid, gid, pidfd, start_time)
        if not peer.alive():
            problem = f"pid {pid} has ended"
        elif not exact and start_time > accepted_at * os.sysconf("SC_CLK_TCK"):
            problem = f"pid {pid} now belongs to a process started after the connection"
        else:
            problem = ""
    except BaseException:
        os.close(pidfd)
        raise
    if problem:
        os.close(pidfd)
        raise PeerError(problem)
    return peer


def _open_pidfd(connection: socket.socket, pid: int) -> tuple[int, bool]:
    """Return a pidfd, and whether it is that of the process that connected rather than of its number."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return os.pidfd_open(pid), False
    os.set_inheritable(pidfd, False)  # noqa: FBT003 - the function takes it by position only
    return pidfd, True


def read_start_time(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; raises PeerError when it is gone."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        message = f"pid {pid} has ended"
        raise PeerError(message) from None
    # The command name may itself contain spaces and parentheses: fields are counted after its last one.
    return int(content.rpartition(b")")[2].split()[_STAT_START_TIME])


def _listen(path: Path) -> socket.socket:
    """Create the socket file, mode 0600, in a directory only we can write; replace a stale one.

    Raises HookSocketError.
    """
    try:
        _prepare_directory(path.parent)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Linux gives the file the mode of the unbound socket: at no moment can anybody else connect.
            os.fchmod(listener.fileno(), _OUR_MODE)
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        message = f"cannot listen on {path}: {error}; correct the path or its directory and start the agent again"
        raise HookSocketError(message) from error
    return listener


def _prepare_directory(directory: Path) -> None:
    with suppress(FileExistsError):
        directory.mkdir(mode=_DIRECTORY_MODE)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to uid {found.st_uid}"
    elif stat.S_IMODE(found.st_mode) & 0o022:
        problem = f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    message = (
        f"{directory} {problem}; expected a directory of uid {os.geteuid()} with mode 0700, because whoever can write "
        "there can pose as the agent; remove or correct it and start the agent again"
    )
    raise HookSocketError(message)


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        message = f"{path} exists and is not a socket; it is left alone: move it away and start the agent again"
        raise HookSocketError(message)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    message = f"another process listens on {path}; stop that agent before starting this one"
    raise HookSocketError(message)
