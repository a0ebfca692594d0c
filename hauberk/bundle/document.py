# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: EM101, EM102 - the parts of one message, put together in one place
"""The bundle: policies and what is promised about them, as one file whose bytes are signed.

The file is canonical JSON (see :mod:`hauberk.bundle.canonical`); the digest of those bytes is the bundle's only
identity. A signature is no identity: from one ECDSA signature anybody can make a second valid one. Policies are
carried as the author's text, comments and all, so that whoever reviews a bundle reads what its author wrote and a
line number in an alert is a line of that file.

:func:`parse` is strict: what it accepts, :meth:`Bundle.encode` gives back byte for byte. It checks the envelope only;
whether the policies themselves are valid is for ``hauberk.policy`` to say, which :mod:`hauberk.bundle.builder` asks
before anything is signed and the agent asks again before anything is enforced.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final

from hauberk.bundle import canonical, terms
from hauberk.bundle.errors import quote
from hauberk.bundle.terms import NO_TERMS, Posture, Terms, choice, refusal

API_VERSION = "hauberk/v1"
KIND = "Bundle"
MAXIMUM_BUNDLE_BYTES = 8 * 1024 * 1024
MAXIMUM_POLICIES = 10_000
MAXIMUM_VERSION = 2**31 - 1
MAXIMUM_FILE_NAME_BYTES = 1024
_FIELDS: Final = ("apiVersion", "kind", "name", "version", "default", "posture", "policies")
POLICY_SUFFIXES = (".yaml", ".yml")
NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class Default(StrEnum):
    """What a workload gets that no policy of the bundle covers."""

    DENY = "deny"
    AUDIT = "audit"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One policy file: its path relative to the directory the bundle was built from, and its text unchanged."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's content. Made by :func:`parse` or :func:`create`, which check it; ``policies`` are sorted by file."""

    name: str
    version: int
    default: Default
    posture: Posture
    policies: tuple[PolicyFile, ...]
    digest: str  # SHA-256 of the file's bytes, 64 lower-case hexadecimal digits
    terms: Terms = NO_TERMS

    def encode(self) -> bytes:
        """Give the file's bytes."""
        return canonical.encode(
            _as_json(self.name, self.version, self.default, self.posture, self.policies, self.terms)
        )


def create(  # noqa: PLR0913, PLR0917 - the parts of a bundle
    name: str,
    version: int,
    policies: tuple[PolicyFile, ...],
    default: str = "deny",
    posture: str = "block",
    conditions: Terms = NO_TERMS,
) -> bytes:
    """Give the bytes of a bundle; the order of ``policies`` does not matter.

    Raises ``MalformedBundleError`` for whatever :func:`parse` would refuse, because it asks it.
    """
    ordered = tuple(sorted(policies, key=lambda policy: policy.file))
    data = canonical.encode(_as_json(name, version, default, posture, ordered, conditions))
    parse(data)
    return data


def parse(data: bytes) -> Bundle:
    """Read a bundle from the bytes of its file.

    Raises ``MalformedBundleError`` unless the bytes are the canonical form of a valid bundle.
    """
    document = canonical.load(data, maximum_bytes=MAXIMUM_BUNDLE_BYTES, what="bundle")
    fields = _object(document, "bundle", _FIELDS, terms.OPTIONAL_FIELDS)
    _constant(fields["apiVersion"], "apiVersion", API_VERSION)
    _constant(fields["kind"], "kind", KIND)
    posture = _object(fields["posture"], "bundle.posture", ("file",), terms.FURTHER_POSTURES)
    bundle = Bundle(
        name=check_name(fields["name"], "bundle.name"),
        version=check_version(fields["version"], "bundle.version"),
        default=choice(fields["default"], "bundle.default", Default),
        posture=choice(posture["file"], "bundle.posture.file", Posture),
        policies=_policies(fields["policies"]),
        digest=sha256(data).hexdigest(),
        terms=terms.read(fields, posture),
    )
    canonical.require_canonical(data, document, "bundle")
    return bundle


def check_name(found: object, where: str) -> str:
    """Return a bundle's name, or raise ``MalformedBundleError``: it is a DNS-like word of at most 63 characters."""
    if isinstance(found, str) and NAME_PATTERN.fullmatch(found):
        return found
    expected = "1 to 63 of a-z, 0-9, '.' and '-', a letter or digit at both ends"
    raise refusal(where, quote(found), expected, "choose such a name")


def check_version(found: object, where: str) -> int:
    """Return a bundle's version, or raise ``MalformedBundleError``.

    It is an integer, 1 ≤ version < 2³¹, so that floors can be compared and nothing can be counted up beyond reach.
    """
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= MAXIMUM_VERSION:
        return found
    raise refusal(
        where, quote(found), f"an integer from 1 to {MAXIMUM_VERSION}", "count upwards by one for each release"
    )


def check_file_name(found: object, where: str) -> str:
    """Return the relative path of a policy file, or raise ``MalformedBundleError``.

    Printable, so that showing it cannot repaint a terminal; without ``.``, ``..`` and empty components, so that it
    cannot lead elsewhere.
    """
    expected = (
        f"a relative path ending in {' or '.join(POLICY_SUFFIXES)}, of printable characters,"
        f" without '.' or '..' components, at most {MAXIMUM_FILE_NAME_BYTES} bytes"
    )
    if not isinstance(found, str) or not found.isprintable() or not found.endswith(POLICY_SUFFIXES):
        raise refusal(where, quote(found), expected, "rename the file")
    too_long = len(found.encode()) > MAXIMUM_FILE_NAME_BYTES
    if too_long or "\\" in found or any(part in {"", ".", ".."} for part in found.split("/")):
        raise refusal(where, quote(found), expected, "rename the file")
    return found


def _as_json(  # noqa: PLR0913, PLR0917 - as above
    name: str, version: int, default: str, posture: str, policies: tuple[PolicyFile, ...], conditions: Terms
) -> dict[str, object]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": name,
        "version": version,
        "default": default,
        "posture": {"file": posture, **{name: value.value for name, value in conditions.postures}},
        "policies": [{"file": policy.file, "text": policy.text} for policy in policies],
        **conditions.as_json(),
    }


def _policies(found: object) -> tuple[PolicyFile, ...]:
    if not isinstance(found, list):
        raise refusal("bundle.policies", type(found).__name__, "a list", "rebuild the bundle")
    if not 1 <= len(found) <= MAXIMUM_POLICIES:
        raise refusal(
            "bundle.policies", f"{len(found)} entries", f"1 to {MAXIMUM_POLICIES}", "split or fill the bundle"
        )
    policies: list[PolicyFile] = []
    for index, entry in enumerate(found):
        where = f"bundle.policies[{index}]"
        fields = _object(entry, where, ("file", "text"))
        text = fields["text"]
        if not isinstance(text, str):
            raise refusal(f"{where}.text", quote(text), "a string: the policy's YAML text", "rebuild the bundle")
        policy = PolicyFile(check_file_name(fields["file"], f"{where}.file"), text)
        if policies and policies[-1].file >= policy.file:
            after = f"a name that sorts after {quote(policies[-1].file)}"
            raise refusal(f"{where}.file", quote(policy.file), after, "rebuild the bundle")
        policies.append(policy)
    return tuple(policies)


def _object(found: object, where: str, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, object]:
    if not isinstance(found, dict):
        raise refusal(
            where, type(found).__name__, f"an object with the fields {', '.join(names)}", "rebuild the bundle"
        )
    if missing := [name for name in names if name not in found]:
        raise refusal(where, f"no field {', '.join(missing)}", f"the fields {', '.join(names)}", "rebuild the bundle")
    if unknown := sorted(set(found) - {*names, *optional}):
        expected = f"no fields but {', '.join((*names, *optional))}"
        raise refusal(
            where, f"the unknown field {quote(unknown[0])}", expected, "use the Hauberk it was built with, or newer"
        )
    return found


def _constant(found: object, where: str, expected: str) -> None:
    if found != expected:
        raise refusal(
            f"bundle.{where}", quote(found), quote(expected), "use the Hauberk that this bundle was built for"
        )
