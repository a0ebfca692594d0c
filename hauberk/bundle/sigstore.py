# SPDX-License-Identifier: Apache-2.0
"""Sigstore bundles 0.3 with a managed key, as ``cosign sign-blob --key`` writes them (sigstore_bundle.proto).

Of the bundle, the signature over the file is taken and verified with a key of the trust root; it is the same signature
that a detached file holds. The rest is one of three:

* Checked, because it contradicts the file if it does not fit: ``messageDigest``, if it is there.
* Accepted and not looked into, because it proves nothing here: ``publicKey.hint`` (it names a key, it is none),
  ``tlogEntries`` and timestamps (a sealed guest has neither a network to ask a log nor a clock to compare with).
* Refused, because the signature is then to be judged in another way: certificates, DSSE envelopes within, other
  versions, unknown fields. Certificates stand for an identity that some service vouched for; here keys are trusted.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

from hauberk.bundle import detached, envelope
from hauberk.bundle.encoding import encode_base64
from hauberk.bundle.errors import WrongSignatureError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hauberk.bundle.keys import PrivateKey

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
# The second is what clients wrote before the first was agreed upon; it must be accepted.
MEDIA_TYPES = (MEDIA_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
MAXIMUM_ENTRIES = 32  # of the log, and of timestamps
_COMMAND = "`cosign sign-blob --key KEY --bundle SIG FILE`"
_MATERIAL = "signature.verificationMaterial"
_MESSAGE = "signature.messageSignature"


def is_sigstore(document: Mapping[str, object]) -> bool:
    """Whether a JSON object is to be read as a Sigstore bundle."""
    return "mediaType" in document


def read(document: Mapping[str, object], data: bytes) -> bytes:
    """Give the signature of a bundle over ``data``, in its binary form, not yet verified.

    Raises ``MalformedSignatureError``; ``WrongSignatureError`` if the bundle names another digest than ``data`` has.
    """
    media_type = envelope.text(document["mediaType"], "signature.mediaType")
    if media_type not in MEDIA_TYPES:
        envelope.refuse("signature.mediaType", quote(media_type), quote(MEDIA_TYPE), f"sign with cosign 3: {_COMMAND}")
    if "dsseEnvelope" in document:
        envelope.refuse(
            "signature",
            "a dsseEnvelope (an attestation about a file)",
            "a messageSignature (a signature of the file)",
            f"sign the bundle itself: {_COMMAND}",
        )
    envelope.require(document, "signature", "mediaType", "verificationMaterial", "messageSignature")
    _only(document, "signature", "mediaType", "verificationMaterial", "messageSignature")
    _check_material(envelope.mapping(document["verificationMaterial"], _MATERIAL))
    message = envelope.mapping(document["messageSignature"], _MESSAGE)
    envelope.require(message, _MESSAGE, "signature")
    _only(message, _MESSAGE, "signature", "messageDigest")
    if "messageDigest" in message:
        _check_digest(envelope.mapping(message["messageDigest"], f"{_MESSAGE}.messageDigest"), data)
    where = f"{_MESSAGE}.signature"
    return envelope.binary(message["signature"], where, detached.MAXIMUM_DETACHED_BYTES, "sign again")


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Sign ``data`` and give the bundle, as ``cosign`` writes it without a log entry."""
    hint = sha256(key.public().subject_public_key_info).digest()
    document = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": encode_base64(hint).decode()}},
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": encode_base64(sha256(data).digest()).decode()},
            "signature": encode_base64(detached.sign(key, data)).decode(),
        },
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _check_material(material: Mapping[str, object]) -> None:
    if certificates := [name for name in ("certificate", "x509CertificateChain") if name in material]:
        envelope.refuse(
            _MATERIAL,
            f"a certificate ({', '.join(certificates)}), so it was signed without a key of one's own",
            "publicKey",
            f"sign with a key: {_COMMAND}",
        )
    envelope.require(material, _MATERIAL, "publicKey")
    _only(material, _MATERIAL, "publicKey", "tlogEntries", "timestampVerificationData")
    public_key = envelope.mapping(material["publicKey"], f"{_MATERIAL}.publicKey")
    _only(public_key, f"{_MATERIAL}.publicKey", "hint")
    if "hint" in public_key:
        envelope.text(public_key["hint"], f"{_MATERIAL}.publicKey.hint")
    entries = envelope.sequence(material.get("tlogEntries", []), f"{_MATERIAL}.tlogEntries", MAXIMUM_ENTRIES)
    for index, entry in enumerate(entries):
        envelope.mapping(entry, f"{_MATERIAL}.tlogEntries[{index}]")
    envelope.mapping(material.get("timestampVerificationData", {}), f"{_MATERIAL}.timestampVerificationData")


def _check_digest(digest: Mapping[str, object], data: bytes) -> None:
    where = f"{_MESSAGE}.messageDigest"
    if not digest:  # cosign 3 writes an empty object with an Ed25519 key, which signs the file and no digest
        return
    envelope.require(digest, where, "algorithm", "digest")
    _only(digest, where, "algorithm", "digest")
    algorithm = envelope.text(digest["algorithm"], f"{where}.algorithm")
    if algorithm != "SHA2_256":
        advice = "sign with a P-256 key, which signs with SHA-256"
        envelope.refuse(f"{where}.algorithm", quote(algorithm), "'SHA2_256'", advice)
    found, expected = envelope.binary(digest["digest"], f"{where}.digest", 64, "sign again"), sha256(data)
    if found != expected.digest():
        message = (
            f"{where}.digest: found the SHA-256 {found.hex()[:64]}, expected {expected.hexdigest()}, that of the"
            f" {len(data)} bytes given: take the signature that belongs to them, or sign again"
        )
        raise WrongSignatureError(message)


def _only(found: Mapping[str, object], where: str, *names: str) -> None:
    if unknown := sorted(set(found) - set(names)):
        expected = f"no fields but {', '.join(names)}"
        envelope.refuse(where, f"the field {quote(unknown[0])}", expected, f"sign again with {_COMMAND}")
