# SPDX-License-Identifier: Apache-2.0
"""Signatures of bundles in every form that people's tools write, and the one question: which of these keys signed?

====================  ==================================================  ==============================
form                  read by                                             keys that can sign in one file
====================  ==================================================  ==============================
detached signature    :mod:`hauberk.bundle.detached`                      one
Sigstore bundle 0.3   :mod:`hauberk.bundle.sigstore` (a managed key)      one
DSSE envelope         :mod:`hauberk.bundle.dsse`                          up to 32, distinct
====================  ==================================================  ==============================

The content tells the form, and no content has two: JSON begins with a brace, which no detached signature does; a
Sigstore bundle has ``mediaType``, a DSSE envelope has ``payloadType``, and what has both is neither. Nothing is tried
in another form after it failed in its own. What counts is always a signature of exactly the bytes that are given,
verified with a key that is given, by the algorithm of that key.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

from hauberk.bundle import detached, dsse, envelope, sigstore
from hauberk.bundle.detached import sign
from hauberk.bundle.envelope import MAXIMUM_ENVELOPE_BYTES
from hauberk.bundle.errors import MalformedSignatureError, SigningKeyError, TooFewSignaturesError
from hauberk.bundle.keys import require_library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hauberk.bundle.keys import PrivateKey, PublicKey

MAXIMUM_SIGNATURE_BYTES = MAXIMUM_ENVELOPE_BYTES  # the largest of the forms; readers of files bound them by this

__all__ = [
    "MAXIMUM_SIGNATURE_BYTES",
    "Form",
    "check_threshold",
    "holds_signatures_of_several",
    "sign",
    "sign_as",
    "verify",
    "verify_any",
]


class Form(StrEnum):
    """How signatures are kept in a file. The value is the spelling of ``hauberk bundle sign --format``."""

    DETACHED = "detached"
    SIGSTORE = "sigstore"
    DSSE = "dsse"


def sign_as(form: Form, key: PrivateKey, data: bytes, existing: bytes | None = None) -> bytes:
    """Sign ``data`` and give the content of the signature file.

    ``existing`` is for envelopes: the one to add the signature to; it is given back unchanged if the key's signature
    is in it already. Raises ``SignatureError`` if it is no envelope of ``data``.
    """
    if form is Form.DSSE:
        return dsse.add_signature(key, data, existing)
    return sigstore.sign(key, data) if form is Form.SIGSTORE else sign(key, data)


def holds_signatures_of_several(signature: bytes) -> bool:
    """Whether a file is a DSSE envelope, to which signatures are added; whatever else it is, it is none."""
    try:
        return envelope.is_envelope(signature) and dsse.is_dsse(envelope.load(signature))
    except MalformedSignatureError:
        return False


def verify(key: PublicKey, data: bytes, signature: bytes) -> None:
    """Return if ``signature``, in any form, is one of ``data`` by ``key``. Raises as :func:`verify_any`."""
    verify_any((key,), 1, data, signature)


def verify_any(keys: Sequence[PublicKey], threshold: int, data: bytes, signature: bytes) -> tuple[PublicKey, ...]:
    """Give the distinct keys among ``keys`` whose signatures of ``data`` are in ``signature``: ``threshold`` or more.

    A key given twice is one key. Raises

    * ``MalformedSignatureError``: none of the forms, or not exactly that form;
    * ``WrongSignatureError``: a signature by none of the keys, or of other bytes;
    * ``TooFewSignaturesError``: right signatures, but of fewer keys than ``threshold``;
    * ``SigningKeyError``: there is no such threshold for these keys;
    * ``MissingLibraryError``.
    """
    distinct = tuple(dict.fromkeys(keys))
    check_threshold(threshold, len(distinct), "threshold")
    require_library()
    if not envelope.is_envelope(signature):
        _require_one(threshold, "a detached signature")
        return (detached.verify_one(distinct, data, detached.decode, signature),)
    document = envelope.load(signature)
    if sigstore.is_sigstore(document):
        _require_one(threshold, "a Sigstore bundle")
        return (detached.verify_one(distinct, data, detached.check_form, sigstore.read(document, data)),)
    if not dsse.is_dsse(document):
        _refuse_other(document)
    return _verify_dsse(distinct, threshold, data, dsse.read(document, data))


def check_threshold(threshold: int, keys: int, where: str) -> None:
    """Refuse a threshold that ``keys`` keys can never or always reach. Raises ``SigningKeyError``."""
    if not 1 <= threshold <= keys:
        expected = f"1 to {keys}, the number of different keys" if keys else "at least one key"
        message = f"{where}: found {threshold}, expected {expected}: correct it, or name more keys"
        raise SigningKeyError(message)


def _require_one(threshold: int, found: str) -> None:
    if threshold > 1:
        message = (
            f"signature: found {found}, which one key made, expected signatures of {threshold} different keys:"
            " collect them in one envelope with `hauberk bundle sign --format dsse`"
        )
        raise TooFewSignaturesError(message)


def _verify_dsse(
    keys: tuple[PublicKey, ...], threshold: int, data: bytes, signatures: tuple[bytes, ...]
) -> tuple[PublicKey, ...]:
    signed_by, unknown = dsse.signers(keys, data, signatures)
    if len(signed_by) >= threshold:
        return signed_by
    those = ", ".join(key.fingerprint[:16] for key in signed_by)
    counted = f"by {len(signed_by)} of the {len(keys)} known keys" + (f" ({those})" if those else "")
    if repeated := len(signatures) - unknown - len(signed_by):
        counted += f", {repeated} more by a key that counts already"
    if unknown:
        counted += f", {unknown} that no known key made for these bytes"
    advice = "let others sign with `hauberk bundle sign --format dsse`"
    if unknown and dsse.signs_bare_data(keys, data, signatures):
        advice = (
            "one signs the bundle itself instead of its DSSE encoding; sign with `hauberk bundle sign --format dsse`"
        )
    message = (
        f"signature: found a DSSE envelope with {len(signatures)} signatures: {counted}; expected {threshold} different"
        f" known keys: {advice}"
    )
    raise TooFewSignaturesError(message)


def _refuse_other(document: dict[str, object]) -> NoReturn:
    if "base64Signature" in document:
        envelope.refuse(
            "signature",
            "a bundle in cosign's older form",
            "a Sigstore bundle 0.3",
            "sign with cosign 3, or with --new-bundle-format",
        )
    if any(name in document for name in ("media_type", "message_signature", "verification_material")):
        expected = "a Sigstore bundle with mediaType, verificationMaterial, messageSignature in this spelling"
        envelope.refuse("signature", "field names with underscores", expected, "sign again with cosign")
    envelope.refuse(
        "signature",
        "JSON that has neither mediaType nor payloadType",
        "a Sigstore bundle 0.3 or a DSSE envelope",
        "check that this is the signature file",
    )
