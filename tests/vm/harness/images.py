# SPDX-License-Identifier: Apache-2.0
"""The guest's disks: a root file system built once, the virtual environment, and this tree as it is now.

The root image is a plain ext4 made by debootstrap, the same for both kernels (it holds both sets of modules), keyed by
everything that goes into it. QEMU never writes to it: every boot works on a snapshot. The virtual environment is an
image too, because imports over 9p take ten seconds and more under emulation; it is remade when it changes. The tree is
a tar archive written for every boot, so that the guest tests what is in the working directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from tests.vm.harness.kernels import Kernel

GUEST = Path(__file__).parent / "guest"

_ROOT_SIZE = "3G"
_RELEASE = "bookworm"
_NOT_IN_THE_TREE = frozenset(
    {".git", ".venv", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache"}
)
_MAXIMUM_TREE = 512 << 20
_KEEP_SECONDS = 900.0


def packages() -> list[str]:
    """Give the Debian packages of the guest."""
    rows = (GUEST / "packages.txt").read_text("utf-8").splitlines()
    return [row for row in rows if row and not row.startswith("#")]


def root_image(cache: Path, kernels: Iterable[Kernel]) -> Path:
    """Give the root image's path, whether or not it has been built."""
    digest = hashlib.sha256()
    for part in [_RELEASE, _ROOT_SIZE, *packages(), *(kernel.release for kernel in kernels)]:
        digest.update(part.encode() + b"\n")
    digest.update((GUEST / "init").read_bytes())
    digest.update(_build_root.__doc__.encode() if _build_root.__doc__ else b"")
    return cache / f"root-{digest.hexdigest()[:16]}.ext4"


def prepare_root(cache: Path, kernels: list[Kernel]) -> Path:
    """Build the root image unless the cache has it, and drop older ones. Needs root (debootstrap)."""
    image = root_image(cache, kernels)
    if not image.exists():
        with tempfile.TemporaryDirectory(dir=cache, prefix="root.") as work:
            _build_root(Path(work), image, kernels)
    for other in cache.glob("root-*.ext4"):
        if other != image:
            other.unlink()
    return image


def _build_root(work: Path, image: Path, kernels: list[Kernel]) -> None:
    """Make a minimal Debian with both kernels' modules and the harness's init (layout 2)."""
    tree = work / "tree"
    _run("debootstrap", "--variant=minbase", f"--include={','.join(packages())}", _RELEASE, str(tree), _mirror())
    for kernel in kernels:
        shutil.copytree(kernel.modules, tree / "lib" / "modules" / kernel.release, symlinks=True)
    shutil.rmtree(tree / "var" / "cache" / "apt", ignore_errors=True)
    shutil.rmtree(tree / "var" / "lib" / "apt" / "lists", ignore_errors=True)
    init = tree / "usr" / "lib" / "hauberk-vm" / "init"
    init.parent.mkdir()
    shutil.copyfile(GUEST / "init", init)
    init.chmod(0o755)
    (tree / "etc" / "hostname").write_text("hauberk-vm\n", "utf-8")
    (tree / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 hauberk-vm\n", "utf-8")
    (tree / "etc" / "machine-id").write_text(hashlib.sha256(b"hauberk-vm").hexdigest()[:32] + "\n", "utf-8")
    # systemd would empty /tmp at boot; the tree may lie below it.
    (tree / "etc" / "tmpfiles.d" / "tmp.conf").symlink_to("/dev/null")
    # Nothing of the guest waits for a network, a login or a time of day; tests start the engines they need.
    for unit in (
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "containerd.service",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "getty@tty1.service",
        "serial-getty@ttyS0.service",
        "podman-auto-update.service",
        "podman-auto-update.timer",
        "podman-restart.service",
        "podman.service",
        "podman.socket",
        "e2scrub_reap.service",
        "systemd-timesyncd.service",
        "systemd-udev-settle.service",
    ):
        (tree / "etc" / "systemd" / "system" / unit).unlink(missing_ok=True)
        (tree / "etc" / "systemd" / "system" / unit).symlink_to("/dev/null")
    _make_ext4(tree, image, _ROOT_SIZE)


def prepare_environment(cache: Path, repository: Path) -> Path:
    """Give an image of the repository's ``.venv``, made anew when the environment has changed."""
    environment = repository / ".venv"
    if not (environment / "bin" / "python").exists():
        message = f"{environment} does not exist: run `make setup` first"
        raise HarnessError(message)
    digest = hashlib.sha256(b"layout 1\n")
    for directory, names, files in os.walk(environment):
        names.sort()
        if directory.endswith("__pycache__"):
            continue
        for name in sorted(files):
            facts = (Path(directory) / name).lstat()
            digest.update(f"{directory}/{name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    image = cache / f"venv-{digest.hexdigest()[:16]}.ext4"
    if not image.exists():
        size = sum(_size(Path(directory) / name) for directory, _, files in os.walk(environment) for name in files)
        _make_ext4(environment, image, f"{(size * 5 // 4 >> 20) + 64}M")
        _drop_old(cache, image)
    return image


def write_tree(repository: Path, out: BinaryIO) -> None:
    """Write the working tree (without version control, caches and environment) as a tar archive.

    Of the caches, the programs compiled for containers go along. A file that vanishes while the archive is written is
    left out: people edit while tests run.
    """
    with tarfile.open(fileobj=out, mode="w") as archive:
        for directory, names, files in os.walk(repository):
            top = directory == str(repository)
            names[:] = sorted(name for name in names if name not in _NOT_IN_THE_TREE or (top and name == ".cache"))
            if directory == str(repository / ".cache"):
                names[:] = [name for name in names if name == "containers"]
                files.clear()
            for name in [*names, *sorted(files)]:
                path = Path(directory) / name
                try:
                    archive.add(path, str(path.relative_to(repository)), recursive=False)
                except FileNotFoundError:
                    continue
                if out.tell() > _MAXIMUM_TREE:
                    message = f"the working tree is larger than {_MAXIMUM_TREE >> 20} MiB: what is {path}?"
                    raise HarnessError(message)


def _drop_old(cache: Path, image: Path) -> None:
    """Remove environments that no run can still be about to open."""
    for other in cache.glob("venv-*.ext4"):
        with contextlib.suppress(FileNotFoundError):
            if other != image and time.time() - other.stat().st_mtime > _KEEP_SECONDS:
                other.unlink()


def _size(path: Path) -> int:
    try:
        return (path.lstat().st_size + 4095) // 4096 * 4096
    except FileNotFoundError:
        return 0


def _make_ext4(tree: Path, image: Path, size: str) -> None:
    draft = image.with_suffix(f".{os.getpid()}.tmp")
    try:
        options = ("-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1")
        _run("mke2fs", *options, "-d", str(tree), str(draft), size)
        draft.rename(image)
    finally:
        draft.unlink(missing_ok=True)


def _mirror() -> str:
    """Give the mirror that apt already uses here, so that a machine with its own mirror needs no other."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages", "Component: main"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    for row in listing.splitlines():
        codename, _, address = row.partition(" ")
        if codename == _RELEASE and address:
            return address
    return "http://deb.debian.org/debian"


def _run(*command: str) -> None:
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    environment = {**os.environ, "PATH": search, "DEBIAN_FRONTEND": "noninteractive"}
    program = shutil.which(command[0], path=search)
    if program is None:
        message = f"{command[0]} is not installed: run `make setup`"
        raise HarnessError(message)
    done = subprocess.run([program, *command[1:]], env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        message = f"{' '.join(command)} ended with {done.returncode}:\n{tail}"
        raise HarnessError(message)
