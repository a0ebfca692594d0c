# SPDX-License-Identifier: Apache-2.0
"""Builds the root file system that test and demo containers run in.

It is made from the running Debian system, so nothing is fetched: a static busybox for everything a shell user
expects, and beside it dynamic programs with their loader and libraries in merged-/usr shape, because path rules meet
both worlds: `/bin/sh` is `/usr/bin/dash` behind two symbolic links, and `cat` can be run by way of the loader. Our
own programs are copied under several names, since the kernel knows a source by the path of its executable. Modes are
wide open wherever an attack works: what is refused must be refused by policy, not by file modes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MARKER = "HAUBERK-SECRET"
APPLICATION_USER = 1000
LOADER = "/lib64/ld-linux-x86-64.so.2"
DYNAMIC_PROGRAMS = (
    "dash",
    "cat",
    "ls",
    "env",
    "id",
    "head",
    "cp",
    "mv",
    "ln",
    "sleep",
    "true",
    "false",
    "touch",
    "sha256sum",
)
STATIC_BUILD = ("attacks", "everyday", "network", "prober", "secrets_service")
DYNAMIC_BUILD = ("denied", "dynamic_source")
COPIES = {
    "attacks": ("opt/attacks/attacks", "opt/sources/trusted", "opt/sources/other"),
    "everyday": ("usr/bin/everyday",),
    "network": ("opt/attacks/network",),
    "prober": ("usr/bin/prober", "opt/sources/prober-a", "opt/sources/prober-b"),
    "secrets_service": ("usr/bin/secrets_service",),
    "denied": ("usr/bin/denied",),
    "dynamic_source": ("opt/sources/dynamic",),
    "preload.so": ("opt/attacks/preload.so",),
}
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/bin/sh": "dash"}
DIRECTORIES = (
    "usr/bin",
    "usr/sbin",
    "usr/lib",
    "usr/lib64",
    "etc",
    "dev",
    "proc",
    "sys",
    "run",
    "root",
    "opt",
    "mnt",
    "var/log",
    "var/lib",
    "home",
)
OPEN_DIRECTORIES = ("vault/secrets", "vault/log", "srv", "mnt/sacrifice", "mnt/cgroup", "run/test", "home/app")


class RootfsError(Exception):
    """The root file system cannot be built; the message says what is missing and where it comes from."""


@dataclass(frozen=True)
class SecretTree:
    """A tree with a secret, as the attacks expect it. All paths are as seen from where the tree was built."""

    base: Path

    @property
    def secret(self) -> Path:
        """The file the attacks are after."""
        return self.base / "app" / "prod" / "key"

    @property
    def public(self) -> Path:
        """A directory on the same file system that policies leave open."""
        return self.base / "public"

    @property
    def linked(self) -> Path:
        """A hard link to the secret, made before any policy applies."""
        return self.public / "prelinked"


def make_secret_tree(base: Path, attacks: Path, *, deep: bool = True) -> SecretTree:
    """Make BASE/app/prod/key, BASE/public with a hard link, and (with `deep`) the deep and long chains in both.

    Raises RootfsError if the program `attacks`, which can go deeper than a path is long, fails.
    """
    tree = SecretTree(base)
    for directory in (base, base / "app", base / "app" / "prod", base / "public"):
        directory.mkdir(mode=0o777, parents=True, exist_ok=True)
        directory.chmod(0o777)
    tree.secret.write_text(f"{MARKER}-{base.name}\n")
    tree.secret.chmod(0o666)
    os.link(tree.secret, tree.linked)
    if deep:
        for command in ([str(tree.secret.parent)], [str(tree.public), str(tree.secret)]):
            result = subprocess.run([str(attacks), "make-deep", *command], check=False, capture_output=True, text=True)
            if result.returncode != 0:
                message = (
                    f"cannot make deep directories below {base}: {result.stderr.strip()}; is it new, and has room?"
                )
                raise RootfsError(message)
    return tree


def remove_tree(directory: Path) -> None:
    """Remove a tree of any depth. The library's own walk needs a stack frame and a path per level."""
    subprocess.run(["/bin/rm", "-rf", "--one-file-system", "--", str(directory)], check=True)


def libraries(program: Path) -> list[Path]:
    """Tell the shared libraries of a program and its loader.

    `ldd` on this system names them; empty for a static one.
    """
    result = subprocess.run(["/usr/bin/ldd", str(program)], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        if "not a dynamic executable" in result.stderr + result.stdout:
            return []
        message = f"ldd {program} failed: {result.stderr.strip()}"
        raise RootfsError(message)
    found = []
    for line in result.stdout.splitlines():
        if "not found" in line:
            message = f"{program} needs a library that this system lacks: {line.strip()}"
            raise RootfsError(message)
        match = re.search(r"(?:=> )?(/\S+) \(0x", line)
        if match:
            found.append(Path(match.group(1)))
    return found


def _install(source: Path, target: Path, mode: int = 0o755) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _install_libraries(program: Path, root: Path) -> None:
    for library in libraries(program):
        # Below merged /usr: /lib/x86_64-linux-gnu/libc.so.6 is written through the link lib -> usr/lib.
        target = root / str(library).lstrip("/")
        if not target.exists():
            _install(library.resolve(), target)


def _checked_busybox(programs: Path) -> Path:
    busybox = Path("/bin/busybox")
    for needed in [
        busybox,
        *(programs / name for name in COPIES),
        *(Path("/usr/bin") / name for name in DYNAMIC_PROGRAMS),
    ]:
        if not needed.exists():
            message = f"{needed} is missing: `make container-programs` builds ours, Debian packages have the rest"
            raise RootfsError(message)
    if libraries(busybox):
        message = f"{busybox} is dynamic: install Debian's busybox-static"
        raise RootfsError(message)
    return busybox


def _make_tree(root: Path) -> None:
    for name in DIRECTORIES:
        (root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, mode in [*((name, 0o777) for name in OPEN_DIRECTORIES), ("tmp", 0o1777), ("var/tmp", 0o1777)]:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\n"
        f"app:x:{APPLICATION_USER}:{APPLICATION_USER}:app:/home/app:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n"
    )
    (root / "etc/group").write_text(f"root:x:0:\napp:x:{APPLICATION_USER}:\nnogroup:x:65534:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/lower-layer.conf").write_text("# a file of the image, for appends that copy it up\n")
    (root / "etc/lower-layer.conf").chmod(0o666)


def build(root: Path, programs: Path, *, deep: bool = True) -> None:
    """Build the root file system in `root` (new or empty) from this system and the compiled programs.

    Raises RootfsError if a program is missing: the compiled ones come from `make container-programs`, busybox from
    busybox-static.
    """
    if root.exists() and any(root.iterdir()):
        message = f"{root} is not empty: give a new directory"
        raise RootfsError(message)
    busybox = _checked_busybox(programs)
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    _make_tree(root)
    for name in DYNAMIC_PROGRAMS:
        _install(Path("/usr/bin") / name, root / "usr/bin" / name)
        _install_libraries(Path("/usr/bin") / name, root)
    _install(busybox, root / "usr/bin/busybox")
    listing = subprocess.run([str(busybox), "--list"], check=True, capture_output=True, text=True)
    for applet in listing.stdout.split():
        link = root / "usr/bin" / applet
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")
    for name, targets in COPIES.items():
        for target in targets:
            _install(programs / name, root / target)
        if name not in STATIC_BUILD:
            _install_libraries(programs / name, root)
    make_secret_tree(root / "srv/secrets", programs / "attacks", deep=deep)


def main(arguments: list[str] | None = None) -> int:
    """Build a root file system from the command line; 0 done, 3 something is missing."""
    parser = argparse.ArgumentParser(prog="rootfs", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", type=Path, help="new directory")
    parser.add_argument(
        "--programs", type=Path, default=Path(".cache/containers"), help="where the compiled programs are"
    )
    parser.add_argument("--no-deep", action="store_true", help="leave the directories of 1,000 levels out")
    options = parser.parse_args(arguments)
    try:
        build(options.root, options.programs, deep=not options.no_deep)
    except RootfsError as error:
        sys.stderr.write(f"rootfs: {error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
