# SPDX-License-Identifier: Apache-2.0
"""libbpf in typed ctypes: only the calls the engine makes, one thin method each.

libbpf does the work that must not be done twice (CO-RE relocation, kernel symbol look-up, ring buffer protocol); this
module adds argument types and turns every failure into :class:`LibbpfError` with libbpf's own last words, because
"Permission denied" alone tells an operator nothing. Works with libbpf 1.0 and later (Debian 12 has 1.1), where failures
are NULL or a negative errno and errno is set.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PRINT_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
SAMPLE_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_ARRAY = 2  # enum bpf_map_type
_ARRAY_OF_MAPS = 12
_KEPT_MESSAGES = 60  # libbpf prints the verifier's log line by line; the end of it is what tells

BPF_ANY = 0

_LEVEL_DEBUG = 2  # enum libbpf_print_level


class LibbpfError(OSError):
    """A libbpf call failed. ``strerror`` says which one, on what, and what libbpf printed last."""


class MapInformation(NamedTuple):
    """Part of the kernel's ``struct bpf_map_info`` (include/uapi/linux/bpf.h)."""

    identifier: int
    value_size: int
    maximum_entries: int


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("rest", ctypes.c_uint8 * 48),
    )


class _CreateOptions(ctypes.Structure):
    """``struct bpf_map_create_opts`` up to the field that is used; libbpf goes by its size."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("type_ids", ctypes.c_uint32 * 4),
        ("inner_map", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_file": (ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_void_p)),
    "bpf_object__load": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_object__close": (None, (ctypes.c_void_p,)),
    "bpf_object__next_program": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_object__next_map": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_object__find_map_by_name": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)),
    "bpf_program__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_program__attach_lsm": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "bpf_link__pin": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "bpf_link__destroy": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_map__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map__pin": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "bpf_map__set_max_entries": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint32)),
    "bpf_map_create": (
        ctypes.c_int,
        (
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.POINTER(_CreateOptions),
        ),
    ),
    "bpf_map_lookup_elem": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_map_update_elem": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)),
    "bpf_map_delete_elem": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p)),
    "bpf_map_get_next_key": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_map_freeze": (ctypes.c_int, (ctypes.c_int,)),
    "bpf_obj_get": (ctypes.c_int, (ctypes.c_char_p,)),
    "bpf_obj_get_info_by_fd": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32))),
    "ring_buffer__new": (ctypes.c_void_p, (ctypes.c_int, SAMPLE_CALLBACK, ctypes.c_void_p, ctypes.c_void_p)),
    "ring_buffer__consume": (ctypes.c_int, (ctypes.c_void_p,)),
    "ring_buffer__epoll_fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "ring_buffer__free": (None, (ctypes.c_void_p,)),
    "libbpf_set_print": (ctypes.c_void_p, (PRINT_CALLBACK,)),
}


class Libbpf:
    """The loaded library. Raises :class:`LibbpfError` when libbpf 1.x is not installed."""

    def __init__(self) -> None:
        """Load the library and take over its messages."""
        name = ctypes.util.find_library("bpf") or "libbpf.so.1"
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError as error:
            message = f"{name} cannot be loaded ({error}); install libbpf 1.0 or later (Debian: apt install libbpf1)"
            raise LibbpfError(errno.ENOENT, message) from error
        self._functions: dict[str, Callable[..., Any]] = {}
        for function, (result, arguments) in _SIGNATURES.items():
            try:
                symbol = getattr(library, function)
            except AttributeError as error:
                message = f"{name} has no {function}; libbpf 1.0 or later is needed"
                raise LibbpfError(errno.ENOSYS, message) from error
            symbol.restype = result
            symbol.argtypes = arguments
            self._functions[function] = symbol
        self._messages: list[str] = []
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)
        self._format.restype = ctypes.c_int
        self._print = PRINT_CALLBACK(self._keep_message)  # a reference of our own: ctypes keeps none
        self._functions["libbpf_set_print"](self._print)

    def _keep_message(self, level: int, form: bytes, arguments: int) -> int:
        if level == _LEVEL_DEBUG:
            return 0
        buffer = ctypes.create_string_buffer(65536)
        self._format(buffer, len(buffer), form, arguments)
        self._messages += buffer.value.decode(errors="replace").splitlines()
        del self._messages[:-_KEPT_MESSAGES]
        return 0

    def _fail(self, number: int, what: str, *, explain: bool) -> LibbpfError:
        said = "\n  ".join(self._messages) if explain else ""
        return LibbpfError(number, f"{what}: {os.strerror(number)}" + (f"; libbpf said:\n  {said}" if said else ""))

    def call(self, function: str, *arguments: Any, what: str, explain: bool = False) -> int:  # noqa: ANN401 - as ctypes
        """Call a function that returns a count or descriptor, negative on failure."""
        result = int(self._functions[function](*arguments))
        if result < 0:
            raise self._fail(ctypes.get_errno() or -result, what, explain=explain)
        return result

    def wait_for_programs(self) -> None:
        """Return when every non-sleepable BPF program that runs now, on any CPU, preempted or not, has ended.

        A write to a map of maps waits for just that before it returns (``maybe_wait_bpf_programs`` in
        kernel/bpf/syscall.c, since Linux 4.20), whatever the kernel's configuration. membarrier(2) would not do: its
        MEMBARRIER_CMD_GLOBAL waits for nothing on a machine with one CPU and is refused under nohz_full.
        """
        opened: list[int] = []

        def made(kind: int, options: _CreateOptions | None) -> int:
            given = None if options is None else ctypes.byref(options)
            what = "make a map to wait for running programs with"
            opened.append(self.call("bpf_map_create", kind, b"hauberk_wait", 4, 4, 1, given, what=what))
            return opened[-1]

        try:
            inner = made(_ARRAY, None)
            outer = made(_ARRAY_OF_MAPS, _CreateOptions(size=ctypes.sizeof(_CreateOptions), inner_map=inner))
            value = inner.to_bytes(4, sys.byteorder)
            self.call("bpf_map_update_elem", outer, bytes(4), value, BPF_ANY, what="wait for running programs")
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def pointer(self, function: str, *arguments: Any, what: str, explain: bool = False) -> int:  # noqa: ANN401 - as ctypes
        """Call a function that returns a pointer, NULL on failure."""
        result = self._functions[function](*arguments)
        if not result:
            raise self._fail(ctypes.get_errno() or errno.EINVAL, what, explain=explain)
        return int(result)

    def iterate(self, function: str, handle: int) -> Iterator[int]:
        """Walk one of libbpf's ``next`` functions."""
        previous = None
        while (following := self._functions[function](handle, previous)) is not None:
            yield int(following)
            previous = following

    def text(self, function: str, handle: int) -> str:
        """Call a function that returns a name."""
        return bytes(self._functions[function](handle)).decode()

    def void(self, function: str, *arguments: Any) -> None:  # noqa: ANN401 - as ctypes
        """Call a function that cannot fail."""
        self._functions[function](*arguments)


class Map:
    """A BPF map by descriptor, keys and values as bytes."""

    def __init__(self, library: Libbpf, descriptor: int, name: str) -> None:
        """Wrap a descriptor, which stays the caller's to close."""
        self._library = library
        self.descriptor = descriptor
        self.name = name
        self.information = self._read_information()

    @classmethod
    def pinned(cls, library: Libbpf, path: Path) -> Map:
        """Open a pinned map; OSError with ENOENT when there is none."""
        descriptor = library.call("bpf_obj_get", os.fsencode(path), what=f"open the pinned map {path}")
        return cls(library, descriptor, path.name)

    def _read_information(self) -> MapInformation:
        info = _MapInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        self._library.call(
            "bpf_obj_get_info_by_fd",
            self.descriptor,
            ctypes.byref(info),
            ctypes.byref(size),
            what=f"query map {self.name}",
        )
        return MapInformation(info.id, info.value_size, info.max_entries)

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, None when there is none."""
        value = ctypes.create_string_buffer(self.information.value_size)
        try:
            self._library.call("bpf_map_lookup_elem", self.descriptor, key, value, what=f"look up in map {self.name}")
        except LibbpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        if len(value) != self.information.value_size:
            message = f"map {self.name} takes values of {self.information.value_size} bytes, got {len(value)}"
            raise ValueError(message)
        self._library.call(
            "bpf_map_update_elem", self.descriptor, key, value, BPF_ANY, what=f"write to map {self.name}"
        )

    def remove(self, key: bytes) -> None:
        """Delete a key; one that is not there is fine."""
        try:
            self._library.call("bpf_map_delete_elem", self.descriptor, key, what=f"remove a key of map {self.name}")
        except LibbpfError as error:
            if error.errno != errno.ENOENT:
                raise

    def keys(self, size: int) -> list[bytes]:
        """All keys of a hash map whose keys have ``size`` bytes."""
        found: list[bytes] = []
        previous: bytes | None = None
        while len(found) <= self.information.maximum_entries:
            following = ctypes.create_string_buffer(size)
            try:
                self._library.call(
                    "bpf_map_get_next_key", self.descriptor, previous, following, what=f"walk map {self.name}"
                )
            except LibbpfError as error:
                if error.errno == errno.ENOENT:
                    return found
                raise
            found.append(following.raw)
            previous = following.raw
        message = f"map {self.name} changes faster than it can be read"
        raise LibbpfError(errno.EAGAIN, message)

    def freeze(self) -> None:
        """Make it read-only for user space, for good."""
        self._library.call("bpf_map_freeze", self.descriptor, what=f"freeze map {self.name}")


class Object:
    """A BPF object file: opened, its maps sized, loaded, attached.

    A context manager; what is not pinned goes with it.
    """

    def __init__(self, library: Libbpf, path: Path) -> None:
        """Open the file; nothing is loaded yet."""
        self._library = library
        self.path = path
        self._handle = library.pointer(
            "bpf_object__open_file", os.fsencode(path), None, what=f"open {path}", explain=True
        )
        self._links: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Give the object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Detach and unload whatever is not pinned."""
        for link in self._links.values():
            self._library.void("bpf_link__destroy", link)
        self._links.clear()
        self._library.void("bpf_object__close", self._handle)

    def _map(self, name: str) -> int:
        return self._library.pointer(
            "bpf_object__find_map_by_name", self._handle, name.encode(), what=f"{self.path.name} has no map {name}"
        )

    def size_map(self, name: str, entries: int) -> None:
        """Set a map's ``max_entries``, before :meth:`load`."""
        self._library.call("bpf_map__set_max_entries", self._map(name), entries, what=f"size map {name}")

    def load(self) -> None:
        """Load into the kernel; the error holds the end of the verifier's log."""
        self._library.call("bpf_object__load", self._handle, what=f"load {self.path.name}", explain=True)

    def maps(self) -> dict[str, Map]:
        """All maps by name, with descriptors of our own that outlive the object."""
        return {
            name: Map(self._library, os.dup(self._library.call("bpf_map__fd", handle, what=f"map {name}")), name)
            for handle in self._library.iterate("bpf_object__next_map", self._handle)
            if not (name := self._library.text("bpf_map__name", handle)).startswith(".") and "." not in name
        }

    def pin_maps(self, directory: Path) -> None:
        """Pin every map under its name."""
        for handle in self._library.iterate("bpf_object__next_map", self._handle):
            name = self._library.text("bpf_map__name", handle)
            if "." not in name:
                self._library.call("bpf_map__pin", handle, os.fsencode(directory / name), what=f"pin map {name}")

    def attach_all(self) -> None:
        """Attach every program; either all are attached or an error names the first that was not."""
        for program in self._library.iterate("bpf_object__next_program", self._handle):
            name = self._library.text("bpf_program__name", program)
            self._links[name] = self._library.pointer(
                "bpf_program__attach_lsm", program, what=f"attach {name}", explain=True
            )

    def pin_links(self, directory: Path) -> None:
        """Pin every link under the name of its program, so that enforcement outlives this process."""
        for name, link in self._links.items():
            self._library.call("bpf_link__pin", link, os.fsencode(directory / name), what=f"pin the link of {name}")


class RingBuffer:
    """Consumer of a BPF ring buffer map; ``fileno`` can be polled."""

    def __init__(self, library: Libbpf, descriptor: int, sample: Callable[[bytes], None]) -> None:
        """Map the buffer; `sample` gets every record as bytes."""
        self._library = library
        self._sample = sample
        self._callback = SAMPLE_CALLBACK(self._receive)
        self._handle = library.pointer(
            "ring_buffer__new", descriptor, self._callback, None, None, what="open the ring buffer"
        )

    def _receive(self, _context: int | None, data: int, size: int) -> int:
        self._sample(ctypes.string_at(data, size))
        return 0

    def fileno(self) -> int:
        """Descriptor that is readable when there is something to consume."""
        return self._library.call("ring_buffer__epoll_fd", self._handle, what="poll the ring buffer")

    def consume(self) -> int:
        """Hand every waiting sample over; how many there were."""
        return self._library.call("ring_buffer__consume", self._handle, what="read the ring buffer")

    def close(self) -> None:
        """Give the mapping back."""
        self._library.void("ring_buffer__free", self._handle)
