# SPDX-License-Identifier: Apache-2.0
"""Does something inside a network namespace, by a thread of its own that ends there.

A thread that entered a namespace never comes back to the agent's others: it does one thing, hands over the result and
ends. What it opened (netlink sockets above all) goes on belonging to that namespace in whatever thread uses it.
Python 3.11 has neither ``setns`` nor ``unshare``, so the C library's are called.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from guest_agent.engines.network_port import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.engines.network_port import Namespace

_CLONE_NEWNET: Final = 0x4000_0000
_NS_GET_NSTYPE: Final = 0xB703

_Result = TypeVar("_Result")


class NamespaceGoneError(EngineError):
    """The namespace is not where it was said to be: its processes ended."""


def open_namespace(namespace: Namespace) -> int:
    """Open a network namespace and return a descriptor, by which it stays even when its processes end.

    Raises NamespaceGoneError when something else or nothing is there, EngineError when it cannot be opened.
    """
    try:
        descriptor = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, ProcessLookupError) as error:
        message = f"network namespace {namespace.inode} is not at {namespace.path} any more; its process ended"
        raise NamespaceGoneError(message) from error
    except OSError as error:
        message = (
            f"network namespace {namespace.inode} cannot be opened at {namespace.path}: {error.strerror};"
            " the agent needs CAP_SYS_PTRACE there"
        )
        raise EngineError(message) from error
    found, kind = os.fstat(descriptor).st_ino, -1
    with suppress(OSError):
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    if found != namespace.inode or kind != _CLONE_NEWNET:
        os.close(descriptor)
        message = (
            f"found inode {found} at {namespace.path}, expected network namespace {namespace.inode};"
            " its process ended meanwhile, look the workload up again"
        )
        raise NamespaceGoneError(message)
    return descriptor


def run_inside(descriptor: int, task: Callable[[], _Result]) -> _Result:
    """Run a task by a thread inside a namespace and return what it returns, or raise what it raises.

    Raises EngineError when the namespace cannot be entered; the task is not begun then.
    """
    return _run(lambda: _library().setns(descriptor, _CLONE_NEWNET), "entered", task)


def run_in_new(task: Callable[[], _Result]) -> _Result:
    """Run a task by a thread inside a new, empty network namespace, which is gone afterwards. As ``run_inside``."""
    return _run(lambda: _library().unshare(_CLONE_NEWNET), "made", task)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.setns.argtypes = [ctypes.c_int, ctypes.c_int]
    library.setns.restype = ctypes.c_int
    library.unshare.argtypes = [ctypes.c_int]
    library.unshare.restype = ctypes.c_int
    return library


def _run(enter: Callable[[], int], done: str, task: Callable[[], _Result]) -> _Result:
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            if enter() != 0:
                reason = os.strerror(ctypes.get_errno())
                message = f"a network namespace cannot be {done} ({reason}); the agent needs CAP_SYS_ADMIN"
                raise EngineError(message)  # noqa: TRY301 - carried to the caller's thread like the task's own
            results.append(task())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, name="hauberk-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
