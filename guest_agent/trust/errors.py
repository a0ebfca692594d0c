# SPDX-License-Identifier: Apache-2.0
"""Why a bundle is not accepted: one class per reason, so that status and tests can tell them apart.

Every text says what was found, what was expected and what to do next. None holds secrets: keys are named by
fingerprint.
"""

from __future__ import annotations

from hauberk.errors import HauberkError


class TrustError(HauberkError):
    """Base of every refusal of the trust layer. Whoever catches it has no bundle."""


class MalformedTrustRoot(TrustError):  # noqa: N818 - named by what it tells
    """The trust root of the machine itself cannot be used; nothing can be verified."""


class MalformedBundle(TrustError):  # noqa: N818
    """The bundle is too large, or signed but not a bundle in canonical form."""


class MalformedSignature(TrustError):  # noqa: N818
    """The signature has not the form that any of the keys asked for writes."""


class WrongSignature(TrustError):  # noqa: N818
    """None of the keys asked for, the root's or the successor rule's, made this signature for these bytes."""


class TooFewSignatures(TrustError):  # noqa: N818
    """Signatures of these bytes, but by fewer different keys than the root or the successor rule asks for."""


class NameMismatch(TrustError):  # noqa: N818
    """A validly signed bundle, but for something else than this machine."""


class VersionBelowFloor(TrustError):  # noqa: N818
    """A validly signed bundle that is older than the machine was built to accept."""


class NotTheSealedBundle(TrustError):  # noqa: N818
    """Another bundle than the one this boot is sealed with."""


class NoSuccessorAllowed(TrustError):  # noqa: N818
    """The bundle in force allows no other before the next boot."""


class NotNewer(TrustError):  # noqa: N818
    """A validly signed successor whose version is not above that of the bundle in force: a replay, most likely."""


class NotTheAcceptedSuccessor(TrustError):  # noqa: N818
    """Another bundle than the one the kernel's record says was accepted at that place of the chain."""


class SuccessorMissing(TrustError):  # noqa: N818
    """The kernel's record says that a successor was accepted, and the chain that was delivered ends before it."""


class MalformedSeal(TrustError):  # noqa: N818
    """What claims to be the sealed digest is none; it is not taken for "not sealed"."""


class NothingVerified(TrustError):  # noqa: N818
    """A seal, a successor or the bundle in force was asked for before a bundle was verified."""


class VerificationUnavailable(TrustError):  # noqa: N818
    """The library that verifies signatures is missing from the image."""

    exit_code = 3
