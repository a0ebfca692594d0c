# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernels for the guest: downloaded with apt, unpacked into the cache, never installed.

The newest kernel of a line is the dependency of a meta package; apt names it and verifies the archive's signature. The
initramfs is virtme-ng's: it loads the few modules needed to reach the root disk and switches to it. Bookworm's 6.1 has
plain modules; 6.12 has xz-compressed ones, which busybox's insmod cannot load, so they are decompressed first.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from virtme import mkinitramfs, modfinder, util

from tests.vm.harness.errors import HarnessError

META_PACKAGES = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}
"""Kernel line -> the package whose dependency is the newest kernel of that line in Debian 12 (6.12: security suite)."""

# What the initramfs must load to reach the disks and the ports. Order and dependencies are found by modprobe.
_EARLY_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4", "unix")

# Drivers of hardware that a QEMU guest never has: two thirds of the modules' size.
_NEVER_NEEDED = (
    "drivers/gpu",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/isdn",
    "drivers/media",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/scsi",
    "drivers/staging",
    "sound",
)


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel. ``root`` holds ``boot/`` and ``lib/modules/<release>`` as in the package."""

    line: str
    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The bzImage."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The modules' directory, with ``modules.dep``."""
        return self.root / "lib" / "modules" / self.release

    @property
    def initramfs(self) -> Path:
        """The initramfs that reaches the root disk."""
        return self.root / "initramfs"


def find(cache: Path, line: str) -> Kernel:
    """Give the prepared kernel of ``line`` ("6.1" or "6.12").

    Raises HarnessError if it was never prepared.
    """
    if line not in META_PACKAGES:
        message = f"unknown kernel {line!r}: expected one of {', '.join(META_PACKAGES)}"
        raise HarnessError(message)
    kernel = _unpacked(cache / "kernels" / line, line)
    if kernel is None:
        message = f"no kernel {line} in {cache}: run `make setup` first"
        raise HarnessError(message)
    return kernel


def prepare(cache: Path, line: str) -> Kernel:
    """Download and unpack the newest kernel of ``line`` unless the cache has one. Needs root only for depmod's sake."""
    final = cache / "kernels" / line
    kernel = _unpacked(final, line)
    if kernel is not None:
        return kernel
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f"{line}.") as name:
        work = Path(name)
        package = _newest(META_PACKAGES[line])
        _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], work)
        (archive,) = work.glob("*.deb")
        tree = work / "tree"
        _run(["dpkg-deb", "-x", str(archive), str(tree)], work)
        (release,) = [entry.name for entry in (tree / "lib" / "modules").iterdir()]
        built = Kernel(line, release, tree)
        for directory in _NEVER_NEEDED:
            shutil.rmtree(built.modules / "kernel" / directory, ignore_errors=True)
        shutil.rmtree(tree / "usr", ignore_errors=True)
        _run(["depmod", "-b", str(tree), release], work)
        _write_initramfs(built, work)
        shutil.rmtree(final, ignore_errors=True)
        tree.rename(final)
    return find(cache, line)


def _unpacked(root: Path, line: str) -> Kernel | None:
    modules = root / "lib" / "modules"
    if not (root / "initramfs").is_file() or not modules.is_dir():
        return None
    (release,) = [entry.name for entry in modules.iterdir()]
    return Kernel(line, release, root)


def _newest(meta_package: str) -> str:
    listing = _run(["apt-cache", "depends", "--important", meta_package], Path("/"))
    for row in listing.splitlines():
        _, separator, package = row.partition("Depends: ")
        if separator and package.startswith("linux-image-"):
            return package
    message = (
        f"apt knows no kernel behind {meta_package}: found {listing.strip()!r}. "
        "Debian 12's main and security suites must be among the apt sources; then `apt-get update`"
    )
    raise HarnessError(message)


def _write_initramfs(kernel: Kernel, work: Path) -> None:
    loose = work / "early"
    loose.mkdir()
    config = mkinitramfs.Config()
    found = modfinder.find_modules_from_install(_EARLY_MODULES, root=str(kernel.root), kver=kernel.release)
    for module in map(Path, found):
        if module.suffix == ".xz":
            plain = loose / module.stem
            plain.write_bytes(lzma.decompress(module.read_bytes()))
            config.modfiles.append(str(plain))
        else:
            config.modfiles.append(str(module))
    config.busybox = mkinitramfs.find_busybox("/", is_native=True)
    if config.busybox is None:
        message = "no busybox found: install the package busybox-static (`make setup` does)"
        raise HarnessError(message)
    config.access = "ro"
    config.root_disk = True
    with kernel.initramfs.open("wb") as out:
        mkinitramfs.mkinitramfs(out, config)


def _run(command: list[str], directory: Path) -> str:
    if util.find_binary([command[0]]) is None:
        message = f"{command[0]} is not installed: run `make setup`"
        raise HarnessError(message)
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        message = f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        raise HarnessError(message)
    return done.stdout
