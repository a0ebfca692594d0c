# SPDX-License-Identifier: Apache-2.0
"""A current release of the program ``nft``, for tests, beside the one that the machine has.

Debian 12 has nft 1.0.6; what the next Debian has reads the same JSON with another parser. So the program and every
library it needs, the C library too, come from the archive of Debian 13: apt resolves, fetches and verifies them in
directories of its own, with no package taken as installed, and they are unpacked into the cache. Nothing of the system
changes. A short script starts the program with its own loader and libraries, so that it works with an empty
environment, which is what engines give it.

``python -m tests.host.network.nft_release`` prepares it and prints its path. There is no way to do without: what cannot
be fetched is an error, never a skipped test.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[3] / ".cache"
SUITE = "trixie"
_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SHIPPED = ("usr/share", "usr/include", "etc", "var")  # nothing of it runs


class ReleaseError(Exception):
    """The program could not be prepared. The message says what failed and what to do."""


def prepare(cache: Path = CACHE) -> Path:
    """Give the path of the program, fetched first unless the cache has it. Raises :class:`ReleaseError`."""
    final = cache / "nft" / SUITE
    program = final / "nft"
    final.parent.mkdir(parents=True, exist_ok=True)
    with (final.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two lanes may ask at once
        if not program.is_file():
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=f"{SUITE}.") as work:
                tree = Path(work) / "tree"
                _fetch(Path(work), tree)
                _write_starter(tree, final)
                version(tree / "check")
                (tree / "check").unlink()
                shutil.rmtree(final, ignore_errors=True)
                tree.rename(final)
    return program


def version(program: Path) -> tuple[int, ...]:
    """Give the version that a program tells of itself, such as ``(1, 1, 3)``. Raises :class:`ReleaseError`."""
    words = _run([str(program), "--version"], {}).split()
    number = next((word.removeprefix("v") for word in words if word.startswith("v")), "")
    if not number.replace(".", "").isdigit():
        message = f"{program} --version said {' '.join(words)!r}, expected a version such as v1.1.3. Run `make clean`"
        raise ReleaseError(message)
    return tuple(map(int, number.split(".")))


def _fetch(work: Path, tree: Path) -> None:
    """Let apt fetch the program with all it needs, and unpack that."""
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (work / directory).mkdir(parents=True)
    (work / "sources").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {SUITE} main\n")
    (work / "status").touch()  # nothing counts as installed: the C library is fetched too
    (work / "configuration").write_text(
        f'Dir::Etc::SourceList "{work}/sources";\n'
        'Dir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State "{work}/state";\n'
        f'Dir::State::Status "{work}/status";\n'
        f'Dir::Cache "{work}/cache";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Retries "1";\n'
        'APT::Sandbox::User "root";\n'
        'APT::Update::Error-Mode "any";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(work / "configuration"), "DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "-qq", "update"], environment)
    take = ["--yes", "--download-only", "--no-install-recommends", "install", "nftables"]
    _run(["apt-get", "-qq", *take], environment)
    tree.mkdir()
    for archive in sorted((work / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(tree)], environment)
    for directory in _SHIPPED:
        shutil.rmtree(tree / directory, ignore_errors=True)


def _write_starter(tree: Path, final: Path) -> None:
    """Write the script that starts the program where it will be, and one for where it is now."""
    loaders = [path for path in tree.rglob("ld-linux*.so.*") if not path.is_symlink()]
    libraries = [path.parent for path in tree.rglob("libnftables.so.1")]
    programs = [path for path in tree.rglob("sbin/nft") if path.is_file()]
    if not (loaders and libraries and programs):
        message = f"the packages of {SUITE} hold no nft, loader or libnftables where expected: see what {tree} holds"
        raise ReleaseError(message)
    for place, name in ((final, "nft"), (tree, "check")):
        loader, directory, program = (
            place / path.relative_to(tree) for path in (loaders[0], libraries[0], programs[0])
        )
        script = tree / name
        script.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{directory}" "{program}" "$@"\n')
        script.chmod(0o755)


def _mirror() -> str:
    """Give the mirror that apt already uses for Debian, so that a machine with its own mirror needs no other."""
    listing = _run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SUITE) $(REPO_URI)", "Created-By: Packages"],
        dict(os.environ),
    )
    # the security suites have a mirror of their own, which holds no other suite
    used = (row.split() for row in listing.splitlines())
    return next((row[2] for row in used if len(row) == 3 and row[0] == "Debian" and "security" not in row[1]), _MIRROR)


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        message = (
            f"{' '.join(command)} ended with {done.returncode}:\n{said}\nExpected Debian's {SUITE} from {_MIRROR} or "
            f"the mirror that apt uses here, signed by a key in {_KEYRING}. Check the network, or upgrade "
            "debian-archive-keyring"
        )
        raise ReleaseError(message)
    return done.stdout


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{prepare()}\n")
    except ReleaseError as error:
        sys.exit(f"nft_release: {error}")
