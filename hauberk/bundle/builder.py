# SPDX-License-Identifier: Apache-2.0
"""From a directory of policies to the bytes that get signed.

The bytes depend on the relative names and the contents of the policy files and on nothing else: not on the order in
which the file system lists them, times, owners, the locale or where the directory lies. Whatever would leave doubt
about what is in the bundle is refused (symbolic links, ``.YAML``, names that cannot be shown); whatever is not a
policy file is left out and said to be. A bundle with an invalid policy is never built: the signature would promise
what the agent will refuse.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hauberk.bundle import contents
from hauberk.bundle.document import (
    MAXIMUM_BUNDLE_BYTES,
    MAXIMUM_POLICIES,
    POLICY_SUFFIXES,
    Bundle,
    Default,
    PolicyFile,
    check_file_name,
    create,
    parse,
)
from hauberk.bundle.errors import MalformedBundleError, PolicyFilesError, quote
from hauberk.bundle.terms import NO_TERMS, Terms

MAXIMUM_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle, and what its author should know before signing it."""

    data: bytes
    bundle: Bundle
    warnings: tuple[str, ...]
    left_out: tuple[str, ...]  # entries of the directory that are not in the bundle, as relative paths


def build(  # noqa: PLR0913, PLR0917 - the parts of a bundle
    directory: str | Path,
    name: str,
    version: int,
    default: str = "deny",
    posture: str = "block",
    terms: Terms = NO_TERMS,
) -> bytes:
    """Give the bytes of the bundle that the policies below ``directory`` make. Raises as :func:`assemble` does."""
    return assemble(directory, name, version, default, posture, terms).data


def assemble(  # noqa: PLR0913, PLR0917 - as above
    directory: str | Path,
    name: str,
    version: int,
    default: str = "deny",
    posture: str = "block",
    terms: Terms = NO_TERMS,
) -> Built:
    """Build a bundle and say what is worth a warning.

    The bytes depend on no clock; the warnings tell of a moment of expiry that has passed by the clock here.

    Raises ``PolicyFilesError`` with every problem found, each with its file and place; ``MalformedBundleError`` for a
    name, version, default, posture or terms that no bundle can have; ``OSError`` if the directory cannot be read.
    """
    files, left_out = _read(Path(directory))
    data = create(name, version, files, default, posture, terms)
    findings = contents.examine(files)
    problems = list(findings.problems)
    if len(problems) > MAXIMUM_PROBLEMS:
        problems = [*problems[:MAXIMUM_PROBLEMS], f"… and {len(problems) - MAXIMUM_PROBLEMS} more: correct these first"]
    if not problems and len(findings.policies) > MAXIMUM_POLICIES:
        found = f"found {len(findings.policies)} policies in {len(files)} files"
        problems.append(f"{found}, expected at most {MAXIMUM_POLICIES}: split the bundle")
    if problems:
        raise PolicyFilesError(*problems)
    rest = len(findings.doubts) - MAXIMUM_PROBLEMS
    warnings = (
        *findings.doubts[:MAXIMUM_PROBLEMS],
        *([f"… and {rest} more about policies: `hauberk policy check` shows all"] if rest > 0 else ()),
        *contents.warnings(findings.policies, Default(default)),
        *contents.terms_warnings(terms, Default(default), datetime.now(UTC)),
    )
    return Built(data, parse(data), warnings, left_out)


def _read(directory: Path) -> tuple[tuple[PolicyFile, ...], tuple[str, ...]]:
    """Read every policy file below a directory, sorted by name."""
    candidates, left_out, problems = _list(directory)
    files: list[PolicyFile] = []
    budget = MAXIMUM_BUNDLE_BYTES
    for relative in candidates:
        try:
            check_file_name(relative, "file name")
            files.append(PolicyFile(relative, _read_text(directory / relative, relative, budget)))
            budget -= len(files[-1].text.encode())
        except MalformedBundleError as error:
            problems += error.problems
    if not candidates and not problems:
        expected = " or ".join(f"*{suffix}" for suffix in POLICY_SUFFIXES)
        problems.append(f"{directory}: found no policy file, expected at least one {expected}: check the directory")
    if problems:
        more = ("… and maybe more: correct these first",) if len(problems) > MAXIMUM_PROBLEMS else ()
        raise PolicyFilesError(*problems[:MAXIMUM_PROBLEMS], *more)
    return tuple(files), tuple(sorted(left_out))


def _list(directory: Path) -> tuple[list[str], list[str], list[str]]:
    """Give, each sorted: names of policy files, names of what is left out, what is wrong with the rest."""
    candidates: list[str] = []
    left_out: list[str] = []
    problems: list[str] = []
    pending = [""]
    while pending and len(candidates) <= MAXIMUM_POLICIES:
        below = pending.pop()
        with os.scandir(directory / below) as listing:
            for entry in listing:
                relative = below + entry.name
                if entry.name.startswith("."):
                    left_out.append(relative)
                elif entry.is_symlink():
                    found = f"{quote(relative)}: found a symbolic link"
                    problems.append(f"{found}, expected files and directories only: put the file itself there")
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(f"{relative}/")
                elif entry.name.lower().endswith(POLICY_SUFFIXES):
                    candidates.append(relative)
                else:
                    left_out.append(relative)
    if len(candidates) > MAXIMUM_POLICIES:
        message = f"{directory}: found more than {MAXIMUM_POLICIES} policy files, expected no more: split the bundle"
        raise PolicyFilesError(message)
    return sorted(candidates), sorted(left_out), sorted(problems)


def _read_text(path: Path, relative: str, budget: int) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            message = f"{relative}: found a special file, expected a regular one: put the policy's text there"
            raise MalformedBundleError(message)
        data = file.read(budget + 1)
    if len(data) > budget:
        # More files cannot make it fit again, so this ends the reading.
        limit = f"{MAXIMUM_BUNDLE_BYTES} bytes"
        message = f"{relative}: found more than {limit} of policies in all, expected at most that: split the bundle"
        raise PolicyFilesError(message)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = (
            f"{relative}: found bytes at offset {error.start} that are not UTF-8, expected UTF-8: convert the file"
        )
        raise MalformedBundleError(message) from error
