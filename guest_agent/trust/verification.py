# SPDX-License-Identifier: Apache-2.0
"""From bytes that the host delivered to the bundle this boot is held to.

Whoever delivers the bytes is the attacker, so the order is fixed: bound the sizes; compare with the seal, if there is
one; verify the signature over the bytes; only then parse, and parse those very bytes, never a second copy read again
by path. Then the name and the floor, which are the only protection against a validly signed bundle of another machine
or of the past: a guest has no clock to trust and no memory across boots.

The states of a boot, ``EMPTY -> VERIFIED -> SEALED``, are values, not objects that change::

    EMPTY     no bundle. `admit` verifies one.
    VERIFIED  one bundle, not yet in the kernel. `admit` takes that bundle only. `seal` seals.
    SEALED    the kernel holds the digest. `admit` takes that bundle only, and there is no way back.
              A restarted agent starts here (`resume`), without the bundle until it is admitted again.
              `succeed` takes the next bundle of the chain, under the rule of the one before.

Invariants:

* There is a :class:`VerifiedBundle` only of bytes that enough keys signed and whose name is the root's. Of the first
  bundle these are keys of the root, its version is at or above the floor, and, once there is a digest, its digest is
  that one; of a successor they are the keys that the bundle before it names. A valid seal replaces none of the checks.
* One bundle a boot, short of successors that the bundle in force allows itself: of the same name and a higher version,
  signed as its ``successor`` says. Each link of the chain is held to the rule of the link before it and no other.
* The kernel keeps the first bundle's digest and a record of the last accepted successor. A restarted agent has no
  bundle (``current`` is None) before it was given the whole chain up to that record: never an older one instead.
* The identity of a bundle is the SHA-256 of its bytes, never its signature (an ECDSA signature has a valid twin).
* An empty or malformed sealed digest is an error, not "not sealed".

Nothing here does I/O. Writing the digest into the kernel's frozen map is the engine's part; it must be there before
:meth:`Trust.seal` is believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING

from guest_agent.trust.errors import (
    MalformedBundle,
    MalformedSeal,
    MalformedSignature,
    NameMismatch,
    NoSuccessorAllowed,
    NothingVerified,
    NotNewer,
    NotTheAcceptedSuccessor,
    NotTheSealedBundle,
    SuccessorMissing,
    TooFewSignatures,
    VerificationUnavailable,
    VersionBelowFloor,
    WrongSignature,
)
from guest_agent.trust.root import TrustedKey
from hauberk.bundle import document, keys, signatures
from hauberk.bundle.errors import (
    MalformedBundleError,
    MalformedSignatureError,
    MissingLibraryError,
    SignatureError,
    SigningKeyError,
    TooFewSignaturesError,
    WrongSignatureError,
    quote,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest_agent.trust.root import TrustRoot
    from hauberk.bundle.document import Bundle

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DAMAGED = "the kernel has that one in force; restore the agent's state directory, or reboot"


class Stage(StrEnum):
    """How far a boot has come."""

    EMPTY = "empty"
    VERIFIED = "verified"
    SEALED = "sealed"


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle that passed every check of :func:`verify` or :meth:`Trust.succeed`, and the keys that signed it."""

    bundle: Bundle
    signed_by: tuple[TrustedKey, ...]  # distinct, as many as root or successor rule asks for or more, in its order

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes that were verified and parsed, 64 hexadecimal digits."""
        return self.bundle.digest


def verify(
    root: TrustRoot, bundle_bytes: bytes, signature_bytes: bytes, sealed_digest: str | None = None
) -> VerifiedBundle:
    """Accept a bundle, or raise the ``TrustError`` that says why not.

    ``sealed_digest`` is None only if this boot is not sealed; otherwise the SHA-256 in hexadecimal that the kernel
    holds, and only the bundle with that digest passes.
    """
    _check_size(bundle_bytes)
    if sealed_digest is not None:
        _check_seal(
            sealed_digest, sha256(bundle_bytes).hexdigest(), "this boot is sealed with", "reboot for another one"
        )
    signed_by = _signers(root.keys, root.threshold, "the trust root", bundle_bytes, signature_bytes)
    bundle = _parse(bundle_bytes)
    if bundle.name != root.bundle_name:
        message = (
            f"bundle: found the name {quote(bundle.name)}, expected {quote(root.bundle_name)}, the only one that this"
            " machine was built to accept: deliver the bundle of this machine"
        )
        raise NameMismatch(message)
    if bundle.version < root.minimum_version:
        message = (
            f"bundle {bundle.name}: found version {bundle.version}, expected {root.minimum_version} or newer, the floor"
            " this machine was built with: deliver a newer bundle"
        )
        raise VersionBelowFloor(message)
    successor_rule(root, bundle)
    return VerifiedBundle(bundle, signed_by)


def successor_rule(root: TrustRoot, bundle: Bundle) -> tuple[tuple[TrustedKey, ...], int] | None:
    """Give the keys that may sign a bundle's successor and how many must have; None where none is allowed.

    Raises ``MalformedBundle`` for a rule whose keys are none, or spelt so that one key could pass for two.
    """
    rule = bundle.terms.successor
    if rule is None:
        return None
    if rule.by_trust_root:
        return root.keys, root.threshold
    found: list[TrustedKey] = []
    for index, key in enumerate(rule.keys):
        where = f"bundle.successor.keys[{index}]"
        try:
            public = keys.load_public(key.public_key.encode(), f"{where}.publicKey")
        except SigningKeyError as error:
            raise MalformedBundle(str(error)) from error
        if keys.public_pem(public).decode() != key.public_key:
            message = f"{where}: found another spelling of a key, expected its one form: build the bundle anew"
            raise MalformedBundle(message)
        found.append(TrustedKey(key.name, public))
    return tuple(found), rule.threshold


@dataclass(frozen=True, slots=True)
class Accepted:
    """The kernel's record of the last successor: its digest and version, and its place in the chain (from 1)."""

    digest: str
    version: int
    number: int

    def __post_init__(self) -> None:
        """Refuse what no agent has written. Raises ``MalformedSeal``."""
        _digest(self.digest)
        if self.number < 1 or not 1 <= self.version <= document.MAXIMUM_VERSION:
            message = (
                f"seal: found successor {self.number} of version {self.version}, expected a place from 1 and a version"
                f" from 1 to {document.MAXIMUM_VERSION}: the record in the kernel is damaged; reboot"
            )
            raise MalformedSeal(message)


@dataclass(frozen=True, slots=True)
class Trust:
    """The state of one boot; see the module's text. Made by :meth:`empty` or :meth:`resume`."""

    root: TrustRoot
    stage: Stage
    verified: VerifiedBundle | None  # the chain's last link so far; None in SEALED until the first is admitted again
    digest: str | None  # of the first bundle; set in VERIFIED and SEALED
    successors: int = 0  # links of the chain after the first bundle
    accepted: Accepted | None = None  # what the kernel says the chain must reach

    @classmethod
    def empty(cls, root: TrustRoot) -> Trust:
        """Begin a boot of which the kernel holds no seal."""
        return cls(root, Stage.EMPTY, None, None)

    @classmethod
    def resume(cls, root: TrustRoot, sealed_digest: str, accepted: Accepted | None = None) -> Trust:
        """Take up a boot whose seal, and maybe the record of a successor, was found in the kernel.

        Raises ``MalformedSeal``.
        """
        return cls(root, Stage.SEALED, None, _digest(sealed_digest), accepted=accepted)

    @property
    def current(self) -> VerifiedBundle | None:
        """The bundle in force: the chain's last link, None while the chain does not reach what was accepted."""
        return self.verified if self.accepted is None or self.successors >= self.accepted.number else None

    def require_current(self) -> VerifiedBundle:
        """Give the bundle in force, or raise ``NothingVerified`` or ``SuccessorMissing``."""
        if (current := self.current) is not None:
            return current
        if self.verified is None or self.accepted is None:
            message = "trust: found no verified bundle, expected one: admit a bundle first"
            raise NothingVerified(message)
        message = (
            f"bundle {self.verified.bundle.name}: found a chain of {self.successors} successor(s), expected"
            f" {self.accepted.number}, ending with version {self.accepted.version} (digest {self.accepted.digest}),"
            " because the kernel has that one in force: restore the agent's state directory, or reboot. No older bundle"
            " is taken in its place"
        )
        raise SuccessorMissing(message)

    def admit(self, bundle_bytes: bytes, signature_bytes: bytes) -> Trust:
        """Verify a bundle: the first one in EMPTY, afterwards only the very same.

        Raises ``TrustError``; the state stays.
        """
        verified = verify(self.root, bundle_bytes, signature_bytes, self.digest)
        if self.successors:
            return self  # there is a newer one, and no way back
        stage = Stage.SEALED if self.stage is Stage.SEALED else Stage.VERIFIED
        return replace(self, stage=stage, verified=verified, digest=verified.digest)

    def succeed(self, bundle_bytes: bytes, signature_bytes: bytes) -> Trust:
        """Take the next link of the chain: in SEALED, under the rule of the link before.

        Raises ``TrustError``, one class for each reason; the state stays.
        """
        if self.stage is not Stage.SEALED or self.verified is None:
            message = f"successor: found stage {self.stage.value} without a sealed bundle, expected one: seal first"
            raise NothingVerified(message)
        _check_size(bundle_bytes)
        number = self.successors + 1
        present = self.verified.bundle
        if self.accepted is not None and number == self.accepted.number:
            self._check_accepted(sha256(bundle_bytes).hexdigest(), self.accepted)
        rule = successor_rule(self.root, present)
        if rule is None:
            message = (
                f"bundle {present.name} version {present.version}: found no successor rule in it, expected one: it"
                " allows no other bundle before the next boot. Reboot for another one"
            )
            raise NoSuccessorAllowed(message)
        whose = f"the successor rule of version {present.version}"
        signed_by = _signers(*rule, whose, bundle_bytes, signature_bytes)
        bundle = _parse(bundle_bytes)
        if bundle.name != present.name:
            message = (
                f"successor: found the name {quote(bundle.name)}, expected {quote(present.name)}: deliver a successor"
                " of this machine's bundle"
            )
            raise NameMismatch(message)
        if bundle.version <= present.version:
            message = (
                f"successor: found version {bundle.version}, expected one above {present.version}, which is in force:"
                " deliver a newer bundle"
            )
            raise NotNewer(message)
        if self.accepted is not None and number == self.accepted.number and bundle.version != self.accepted.version:
            message = f"successor: found version {bundle.version}, expected {self.accepted.version}: {_DAMAGED}"
            raise NotTheAcceptedSuccessor(message)
        successor_rule(self.root, bundle)
        verified = VerifiedBundle(bundle, signed_by)
        accepted = self.accepted
        if accepted is None or number >= accepted.number:
            accepted = Accepted(bundle.digest, bundle.version, number)
        return replace(self, verified=verified, successors=number, accepted=accepted)

    @staticmethod
    def _check_accepted(found: str, accepted: Accepted) -> None:
        if not compare_digest(accepted.digest, found):
            message = f"successor {accepted.number}: found digest {found}, expected {accepted.digest}: {_DAMAGED}"
            raise NotTheAcceptedSuccessor(message)

    def seal(self, kernel_digest: str) -> Trust:
        """Become SEALED, given the digest that was read back from the kernel's frozen map.

        Raises ``NothingVerified`` without a verified bundle, ``NotTheSealedBundle`` if the kernel holds another digest.
        """
        if self.verified is None or self.digest is None:
            message = (
                f"seal: found stage {self.stage.value} without a verified bundle, expected one: admit a bundle first"
            )
            raise NothingVerified(message)
        _check_seal(kernel_digest, self.digest, "the kernel is sealed with", "reboot; do not go on with this bundle")
        return replace(self, stage=Stage.SEALED)


def _check_size(bundle_bytes: bytes) -> None:
    if len(bundle_bytes) > document.MAXIMUM_BUNDLE_BYTES:
        message = (
            f"bundle: found {len(bundle_bytes)} bytes or more, expected at most {document.MAXIMUM_BUNDLE_BYTES}:"
            " deliver the file that `hauberk bundle build` wrote"
        )
        raise MalformedBundle(message)


def _parse(bundle_bytes: bytes) -> Bundle:
    try:
        return document.parse(bundle_bytes)
    except MalformedBundleError as error:
        message = f"the signature is valid, but the file is no bundle: {error}"
        raise MalformedBundle(message) from error


def _digest(found: str) -> str:
    if not isinstance(found, str) or not _DIGEST.fullmatch(found):
        message = (
            f"seal: found {quote(found)}, expected 64 lower-case hexadecimal digits (a SHA-256):"
            " the seal in the kernel is damaged; reboot"
        )
        raise MalformedSeal(message)
    return found


def _check_seal(sealed: str, found: str, what: str, action: str) -> None:
    if not compare_digest(_digest(sealed), found):
        message = f"bundle: found one with digest {found}, expected {sealed}, because {what} that one: {action}"
        raise NotTheSealedBundle(message)


def _signers(
    trusted: Sequence[TrustedKey], threshold: int, whose: str, data: bytes, signature: bytes
) -> tuple[TrustedKey, ...]:
    """Give those of the keys that made this signature: as many as asked for, or more."""
    try:
        found = signatures.verify_any([key.public for key in trusted], threshold, data, signature)
    except MissingLibraryError as error:
        raise VerificationUnavailable(str(error)) from error
    except MalformedSignatureError as error:
        raise MalformedSignature(_with_names(trusted, whose, error)) from error
    except WrongSignatureError as error:
        raise WrongSignature(_with_names(trusted, whose, error)) from error
    except TooFewSignaturesError as error:
        raise TooFewSignatures(_with_names(trusted, whose, error)) from error
    return tuple(key for key in trusted if key.public in found)


def _with_names(trusted: Sequence[TrustedKey], whose: str, error: SignatureError) -> str:
    named = ", ".join(f"{key.name} {key.public.fingerprint[:16]}" for key in trusted)
    return f"{'; '.join(error.problems)} (keys of {whose}: {named})"
