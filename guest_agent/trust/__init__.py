# SPDX-License-Identifier: Apache-2.0
"""Trust root -> verified bundle -> sealed. Pure: no I/O, no clock, no state beyond what is passed in."""

from __future__ import annotations

from guest_agent.trust.errors import (
    MalformedBundle,
    MalformedSeal,
    MalformedSignature,
    MalformedTrustRoot,
    NameMismatch,
    NoSuccessorAllowed,
    NothingVerified,
    NotNewer,
    NotTheAcceptedSuccessor,
    NotTheSealedBundle,
    SuccessorMissing,
    TooFewSignatures,
    TrustError,
    VerificationUnavailable,
    VersionBelowFloor,
    WrongSignature,
)
from guest_agent.trust.root import TrustedKey, TrustRoot
from guest_agent.trust.verification import Accepted, Stage, Trust, VerifiedBundle, verify

__all__ = [
    "Accepted",
    "MalformedBundle",
    "MalformedSeal",
    "MalformedSignature",
    "MalformedTrustRoot",
    "NameMismatch",
    "NoSuccessorAllowed",
    "NotNewer",
    "NotTheAcceptedSuccessor",
    "NotTheSealedBundle",
    "NothingVerified",
    "Stage",
    "SuccessorMissing",
    "TooFewSignatures",
    "Trust",
    "TrustError",
    "TrustRoot",
    "TrustedKey",
    "VerificationUnavailable",
    "VerifiedBundle",
    "VersionBelowFloor",
    "WrongSignature",
    "verify",
]
