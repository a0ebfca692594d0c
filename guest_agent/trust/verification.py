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

Invariants:

* There is a :class:`VerifiedBundle` only of bytes that enough keys of the root signed, whose name is the root's, whose
  version is at or above the floor; and, once there is a digest, whose digest is that one. A valid seal replaces none
  of the checks.
* One bundle a boot. A newer one is accepted at the next boot, not now.
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
    NothingVerified,
    NotTheSealedBundle,
    TooFewSignatures,
    VerificationUnavailable,
    VersionBelowFloor,
    WrongSignature,
)
from hauberk.bundle import document, signatures
from hauberk.bundle.errors import (
    MalformedBundleError,
    MalformedSignatureError,
    MissingLibraryError,
    SignatureError,
    TooFewSignaturesError,
    WrongSignatureError,
    quote,
)

if TYPE_CHECKING:
    from guest_agent.trust.root import TrustedKey, TrustRoot
    from hauberk.bundle.document import Bundle

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Stage(StrEnum):
    """How far a boot has come."""

    EMPTY = "empty"
    VERIFIED = "verified"
    SEALED = "sealed"


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle that passed every check of :func:`verify`, and the keys whose signatures it carries."""

    bundle: Bundle
    signed_by: tuple[TrustedKey, ...]  # distinct, as many as the root asks for or more, in the root's order

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
    if len(bundle_bytes) > document.MAXIMUM_BUNDLE_BYTES:
        message = (
            f"bundle: found {len(bundle_bytes)} bytes or more, expected at most {document.MAXIMUM_BUNDLE_BYTES}:"
            " deliver the file that `hauberk bundle build` wrote"
        )
        raise MalformedBundle(message)
    if sealed_digest is not None:
        _check_seal(
            sealed_digest, sha256(bundle_bytes).hexdigest(), "this boot is sealed with", "reboot for another one"
        )
    signed_by = _signers(root, bundle_bytes, signature_bytes)
    try:
        bundle = document.parse(bundle_bytes)
    except MalformedBundleError as error:
        message = f"the signature is valid, but the file is no bundle: {error}"
        raise MalformedBundle(message) from error
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
    return VerifiedBundle(bundle, signed_by)


@dataclass(frozen=True, slots=True)
class Trust:
    """The state of one boot; see the module's text. Made by :meth:`empty` or :meth:`resume`."""

    root: TrustRoot
    stage: Stage
    verified: VerifiedBundle | None  # None also in SEALED, after a restart, until the bundle is admitted again
    digest: str | None  # set in VERIFIED and SEALED

    @classmethod
    def empty(cls, root: TrustRoot) -> Trust:
        """Begin a boot of which the kernel holds no seal."""
        return cls(root, Stage.EMPTY, None, None)

    @classmethod
    def resume(cls, root: TrustRoot, sealed_digest: str) -> Trust:
        """Take up a boot whose seal was found in the kernel. Raises ``MalformedSeal``."""
        return cls(root, Stage.SEALED, None, _digest(sealed_digest))

    def admit(self, bundle_bytes: bytes, signature_bytes: bytes) -> Trust:
        """Verify a bundle: the first one in EMPTY, afterwards only the very same.

        Raises ``TrustError``; the state stays.
        """
        verified = verify(self.root, bundle_bytes, signature_bytes, self.digest)
        stage = Stage.SEALED if self.stage is Stage.SEALED else Stage.VERIFIED
        return replace(self, stage=stage, verified=verified, digest=verified.digest)

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


def _signers(root: TrustRoot, data: bytes, signature: bytes) -> tuple[TrustedKey, ...]:
    """Give the keys of the root that made this signature: as many as the root asks for, or more."""
    try:
        found = signatures.verify_any([key.public for key in root.keys], root.threshold, data, signature)
    except MissingLibraryError as error:
        raise VerificationUnavailable(str(error)) from error
    except MalformedSignatureError as error:
        raise MalformedSignature(_with_names(root, error)) from error
    except WrongSignatureError as error:
        raise WrongSignature(_with_names(root, error)) from error
    except TooFewSignaturesError as error:
        raise TooFewSignatures(_with_names(root, error)) from error
    return tuple(key for key in root.keys if key.public in found)


def _with_names(root: TrustRoot, error: SignatureError) -> str:
    keys = ", ".join(f"{key.name} {key.public.fingerprint[:16]}" for key in root.keys)
    return f"{'; '.join(error.problems)} (keys of the trust root: {keys})"
