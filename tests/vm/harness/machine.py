# SPDX-License-Identifier: Apache-2.0
"""Boots one guest, runs one command in it, and reports. Anything unclear is a failure.

The guest sees copies only: the root and the environment as read-only images (the root behind a QEMU snapshot), the
tree as an archive. It has no network card. Output comes over one virtio port, live; it ends in a line with this run's
nonce and the command's status. Without that line (panic, power-off, crash of QEMU, timeout) there is no success. Once
the line has been read, QEMU is killed: nothing on the disks is kept. QEMU also dies with the harness (parent-death
signal).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.harness import images, kernels
from tests.vm.harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[3]
"""The working tree this harness belongs to; the guest has it at the same path."""

DEFAULT_TIMEOUT = 600.0
"""Seconds from the start of QEMU to the command's end."""

NO_STATUS = 125
"""Exit status of ``run`` when the guest reported none."""

_SECURITY_MODULES = "lockdown,capability,yama,apparmor,bpf"
_CONSOLE_TAIL = 40  # lines of the guest's console shown after a failure


@dataclass(frozen=True)
class Result:
    """What came of a run.

    ``returncode`` is the command's own status, or :data:`NO_STATUS` if the guest reported none; ``problem`` then says
    why. ``output`` is what the command printed (stdout and stderr in one). ``console`` is the kernel's console.
    ``out_dir`` holds the files the command left in ``$HAUBERK_OUT``. ``seconds`` is the time QEMU ran.
    """

    returncode: int
    output: str
    out_dir: Path
    problem: str | None
    console: str
    seconds: float


_PREPARING = threading.Lock()


def cache_directory(repository: Path = REPOSITORY) -> Path:
    """Give the directory of kernels and images. ``HAUBERK_VM_CACHE`` overrides, to share it between clones."""
    return Path(os.environ.get("HAUBERK_VM_CACHE") or repository / ".cache" / "vm")


def prepare() -> None:
    """Fetch both kernels and build the root image, unless the cache has them. Needs root and a Debian mirror."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    images.prepare_root(cache, [kernels.prepare(cache, line) for line in kernels.META_PACKAGES])


def run(  # noqa: PLR0913 - the options of one boot; a settings object would only rename them
    kernel: str,
    command: Sequence[str],
    *,
    systemd: bool = False,
    memory: str = "2G",
    cpus: int = 2,
    timeout: float = DEFAULT_TIMEOUT,
    out_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
    kernel_arguments: Sequence[str] = (),
    echo: Callable[[bytes], object] | None = None,
) -> Result:
    """Run ``command`` in a guest with the kernel ``kernel`` ("6.1", "6.12"), with the repository as its directory.

    ``systemd`` boots systemd as the first process and runs the command as a unit once ``multi-user.target`` is
    reached; otherwise a script is the first process. ``echo`` is called with output as it arrives. Raises HarnessError
    if the guest cannot be started at all; everything after that ends in a Result.
    """
    cache = cache_directory()
    chosen = kernels.find(cache, kernel)
    root = images.root_image(cache, [kernels.find(cache, line) for line in kernels.META_PACKAGES])
    if not root.exists():
        message = f"{root} does not exist: run `make setup` first"
        raise HarnessError(message)
    with _PREPARING:  # guests may be started side by side; the image they share is made once
        environment_image = images.prepare_environment(cache, REPOSITORY)
    nonce = f"hauberk-vm-{secrets.token_hex(16)}"
    target = out_dir or Path(tempfile.mkdtemp(prefix="hauberk-vm-out."))
    with tempfile.TemporaryDirectory(prefix="hauberk-vm.") as name:
        work = Path(name)
        disks = {
            "root": root,
            "venv": environment_image,
            "job": work / "job.tar",
            "tree": work / "tree.tar",
        }
        _write_job(disks["job"], command, {**(environment or {})}, nonce)
        with disks["tree"].open("wb") as out:
            images.write_tree(REPOSITORY, out)
        arguments = ["root=/dev/vda", "init=/usr/lib/hauberk-vm/init", *kernel_arguments]
        if systemd:
            arguments += ["hauberk.systemd", "systemd.show_status=0", "systemd.firstboot=off"]
        return _boot(chosen, disks, arguments, _Machine(memory, cpus, timeout), (nonce, work, target), echo)


@dataclass(frozen=True)
class _Machine:
    memory: str
    cpus: int
    timeout: float


def _write_job(path: Path, command: Sequence[str], environment: dict[str, str], nonce: str) -> None:
    python = REPOSITORY / ".venv" / "bin"
    settings = {"HAUBERK_TREE": str(REPOSITORY), "HAUBERK_NONCE": nonce}
    exports = {"PATH": f"{python}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **environment}
    script = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in exports.items())
    script += "unset HAUBERK_NONCE\nexec " + shlex.join(command) + "\n"
    texts = {
        "settings": "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items()),
        "command": script,
    }
    with tempfile.TemporaryDirectory() as name, tarfile.open(path, "w") as archive:
        for key, text in texts.items():
            (Path(name) / key).write_text(text, "utf-8")
            archive.add(Path(name) / key, key)
        for key in ("setup", "runner", "hauberk-vm.service"):
            archive.add(images.GUEST / key, key)


def _qemu(  # noqa: PLR0913, PLR0917 - called once
    kernel: kernels.Kernel, disks: dict[str, Path], arguments: list[str], machine: _Machine, work: Path, output: int
) -> list[str]:
    # thread=single: with a host thread for each processor, one may still run code that another has just patched
    # (static keys), and the guest dies of a breakpoint nobody knows.
    append = [
        "console=ttyS0",
        "panic=-1",
        "loglevel=4",
        "random.trust_cpu=on",
        "mitigations=off",
        "tsc=reliable",
        f"lsm={_SECURITY_MODULES}",
        *arguments,
    ]
    command = [
        "setpriv", "--pdeathsig", "KILL", "--",
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
        "-machine", "q35,usb=off,vmport=off,smm=off", "-cpu", "max", "-accel", "tcg,thread=single",
        "-smp", str(machine.cpus), "-m", machine.memory,
        "-kernel", str(kernel.image), "-initrd", str(kernel.initramfs), "-append", " ".join(append),
        "-serial", f"file:{work / 'console'}",
        "-device", "virtio-serial-pci",
        "-chardev", f"file,id=output,path=/dev/fd/{output}", "-device", "virtserialport,chardev=output,name=output",
        "-chardev", f"file,id=files,path={work / 'files.tar'}", "-device", "virtserialport,chardev=files,name=files",
    ]  # fmt: skip
    for name, path in disks.items():
        mode = "snapshot=on,cache=unsafe" if name == "root" else "readonly=on"
        command += [
            "-drive", f"if=none,id={name},file={path},format=raw,{mode}",
            "-device", f"virtio-blk-pci,drive={name},serial={name}",
        ]  # fmt: skip
    return command


def _boot(  # noqa: PLR0913, PLR0917 - called once
    kernel: kernels.Kernel,
    disks: dict[str, Path],
    arguments: list[str],
    machine: _Machine,
    places: tuple[str, Path, Path],
    echo: Callable[[bytes], object] | None,
) -> Result:
    nonce, work, target = places
    reader, writer = os.pipe()
    complaints = work / "complaints"
    started = time.monotonic()
    with open(reader, "rb", buffering=0):  # noqa: PTH123 - a descriptor has no path
        try:
            with complaints.open("wb") as stderr:
                process = subprocess.Popen(
                    _qemu(kernel, disks, arguments, machine, work, writer),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(writer,),
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            message = f"{error.filename} is not installed: run `make setup`"
            raise HarnessError(message) from error
        finally:
            os.close(writer)
        with _killed_at_the_end(process):
            output, status = _follow(reader, nonce, started + machine.timeout, echo)
    seconds = time.monotonic() - started
    complaint = complaints.read_text("utf-8", "replace").strip()
    console_file = work / "console"
    console = console_file.read_text("utf-8", "replace") if console_file.exists() else ""
    problem = None
    if status is None:
        problem = "the guest ended without a status"
        if seconds >= machine.timeout:
            problem = f"no status within {machine.timeout:.0f} s"
        if complaint:
            problem += f" (QEMU: {complaint})"
    elif not status.isdecimal():
        problem = f"the files in $HAUBERK_OUT could not be copied (status {status!r})"
    else:
        problem = _collect(work / "files.tar", target)
    returncode = NO_STATUS if problem is not None or status is None else int(status)
    return Result(returncode, output.decode("utf-8", "replace"), target, problem, console, seconds)


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    with contextlib.ExitStack() as stack:
        # Signal handlers belong to the main thread; elsewhere the parent-death signal is what remains.
        with contextlib.suppress(ValueError):
            previous = signal.signal(signal.SIGTERM, stop)
            stack.callback(signal.signal, signal.SIGTERM, previous)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _follow(
    reader: int, nonce: str, deadline: float, echo: Callable[[bytes], object] | None
) -> tuple[bytes, str | None]:
    """Read until the line with the nonce, the end of file or the deadline; give the text before and the status."""
    marker = b"\n" + nonce.encode() + b" "
    seen = bytearray()
    shown = 0

    def show(end: int) -> None:
        nonlocal shown
        if echo is not None and end > shown:
            echo(bytes(seen[shown:end]))
        shown = max(shown, end)

    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while (remaining := deadline - time.monotonic()) > 0:
            if not selector.select(remaining):
                continue
            chunk = os.read(reader, 1 << 16)
            seen += chunk
            end = seen.find(marker, max(0, len(seen) - len(chunk) - len(marker) - 8))
            status, complete, _ = seen[end + len(marker) :].partition(b"\n") if end >= 0 else (b"", b"", b"")
            if complete:
                show(end)
                return bytes(seen[:end]), status.decode("ascii", "replace")
            if not chunk:
                break
            # The marker comes in one write; a tail that may be its beginning is held back all the same. Not a newline
            # alone: every line ends in one, and who reads lines must not wait for the next.
            tail = seen.rfind(b"\n")
            partial = 0 <= tail < len(seen) - 1 and marker.startswith(bytes(seen[tail:]))
            show(end if end >= 0 else tail if partial else len(seen))
    show(len(seen))
    return bytes(seen), None


def _collect(archive_path: Path, target: Path) -> str | None:
    """Unpack what the guest sent: plain files and directories, inside ``target`` only. Give the problem, if any."""
    target.mkdir(parents=True, exist_ok=True)
    if not archive_path.exists() or archive_path.stat().st_size == 0:
        return None
    with tarfile.open(archive_path) as archive:
        for member in archive:
            path = target / member.name
            if not path.resolve().is_relative_to(target.resolve()):
                return f"the guest sent a file outside of $HAUBERK_OUT: {member.name}"
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                content = archive.extractfile(member)
                path.write_bytes(content.read() if content else b"")
    return None


def explain(result: Result) -> str:
    """Say why a run has no status, with the end of the guest's console; nothing for one that has."""
    if result.problem is None:
        return ""
    tail = result.console.splitlines()[-_CONSOLE_TAIL:]
    return f"vm: {result.problem}; end of the guest's console:\n" + "".join(f"  | {row}\n" for row in tail)


def report(result: Result) -> None:
    """Say it on stderr."""
    sys.stderr.write(explain(result))
