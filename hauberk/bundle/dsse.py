# SPDX-License-Identifier: Apache-2.0
"""DSSE envelopes (Dead Simple Signing Envelope 1.0.2): one bundle, signed by several people.

What is signed is not the bundle but its pre-authentication encoding: the payload's type and the payload, each after its
length in bytes. So a signature made for another kind of document is none for a bundle, and one of a bare file is none
for an envelope. The type is :data:`PAYLOAD_TYPE` and no other. It carries no version: the bundle says its own.

The envelope repeats the bundle as its payload. It must be the bundle's bytes, in standard or URL-safe base64 as the
specification asks, and is only compared, never decoded and used: what is parsed are the bytes delivered as the bundle.

``keyid`` is a hint that anybody can write. It is not looked at: every signature is tried with every key. A signature of
no known key is passed over, for others may trust other keys; one signature counts for one key and one key counts once.

The specification wants unknown fields ignored. They are, except those that are a known name but for upper and lower
case: some JSON readers make no difference there, and would read another document.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

from hauberk.bundle import detached, envelope
from hauberk.bundle.encoding import encode_base64, encode_base64_url
from hauberk.bundle.errors import MalformedSignatureError, WrongSignatureError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hauberk.bundle.keys import PrivateKey, PublicKey

PAYLOAD_TYPE = "application/vnd.hauberk.bundle+json"
MAXIMUM_SIGNATURES = 32
_FEW = 32
_SIGN_AGAIN = "sign again with `hauberk bundle sign --format dsse`"
_FIELDS = ("payload", "payloadType", "signatures")
_SIGNATURE_FIELDS = ("keyid", "sig")


def pre_authentication_encoding(data: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Give the bytes that are signed (PAE of the DSSE protocol). Lengths count bytes, also those of the type."""
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(data), data)


def is_dsse(document: Mapping[str, object]) -> bool:
    """Whether a JSON object is to be read as a DSSE envelope."""
    return "payloadType" in document


def read(document: Mapping[str, object], data: bytes) -> tuple[bytes, ...]:
    """Give the signatures of an envelope of ``data``, in their binary form and their order, none of them verified.

    Raises ``MalformedSignatureError``; ``WrongSignatureError`` if the envelope is of something else.
    """
    _no_other_case(document, "signature", _FIELDS)
    envelope.require(document, "signature", *_FIELDS)
    payload_type = envelope.text(document["payloadType"], "signature.payloadType")
    if payload_type != PAYLOAD_TYPE:
        message = f"signature.payloadType: found {quote(payload_type)}, expected {quote(PAYLOAD_TYPE)}: {_SIGN_AGAIN}"
        raise WrongSignatureError(message)
    payload = envelope.ascii_bytes(envelope.text(document["payload"], "signature.payload"), "signature.payload")
    if payload not in (encode_base64(data), encode_base64_url(data)):
        message = (
            f"signature.payload: found other bytes than base64 of these {len(data)}, expected the very bundle that was"
            f" given: take the envelope that belongs to it, or {_SIGN_AGAIN}"
        )
        raise WrongSignatureError(message)
    entries = envelope.sequence(document["signatures"], "signature.signatures", MAXIMUM_SIGNATURES)
    return tuple(_signature(entry, f"signature.signatures[{index}]") for index, entry in enumerate(entries))


def signers(keys: Sequence[PublicKey], data: bytes, signatures: Sequence[bytes]) -> tuple[tuple[PublicKey, ...], int]:
    """Give the distinct keys among ``keys`` that signed, in their order, and how many signatures are of none of them.

    The keys must be distinct.
    """
    signed = pre_authentication_encoding(data)
    digest = sha256(signed).digest()
    found: set[PublicKey] = set()
    unknown = 0
    for signature in signatures:
        for key in keys:
            if _is_by(key, signed, digest, signature):
                found.add(key)
                break
        else:
            unknown += 1
    return tuple(key for key in keys if key in found), unknown


def signs_bare_data(keys: Sequence[PublicKey], data: bytes, signatures: Sequence[bytes]) -> bool:
    """Whether one of the signatures is of the bundle itself instead of its encoding: a common mistake, for texts.

    Only where there are few: whoever made the envelope decides how many there are, and a text is not worth minutes.
    """
    if len(keys) * len(signatures) > _FEW:
        return False
    digest = sha256(data).digest()
    return any(_is_by(key, data, digest, signature) for signature in signatures for key in keys)


def add_signature(key: PrivateKey, data: bytes, existing: bytes | None = None) -> bytes:
    """Sign ``data`` and give the envelope: a new one, or ``existing`` with one signature more.

    It is given back unchanged if the key's signature is in it already. Signatures of others are kept as they are,
    verified or not: only who knows their keys can tell. Raises ``SignatureError`` if ``existing`` is no envelope of
    ``data``.
    """
    document: dict[str, object] = {"payload": encode_base64(data).decode(), "payloadType": PAYLOAD_TYPE}
    entries: list[object] = []
    if existing is not None:
        document = _load(existing)
        signatures = read(document, data)
        if signers((key.public(),), data, signatures)[0]:
            return existing
        if len(signatures) >= MAXIMUM_SIGNATURES:
            expected = f"room for one more (at most {MAXIMUM_SIGNATURES})"
            envelope.refuse("signature.signatures", f"{len(signatures)} entries", expected, "remove what is not needed")
        entries = envelope.sequence(document["signatures"], "signature.signatures", MAXIMUM_SIGNATURES)
    made = detached.sign(key, pre_authentication_encoding(data))
    entry = {"keyid": key.public().fingerprint, "sig": encode_base64(made).decode()}
    return json.dumps({**document, "signatures": [*entries, entry]}, indent=1).encode() + b"\n"


def _load(existing: bytes) -> dict[str, object]:
    document = envelope.load(existing) if envelope.is_envelope(existing) else {}
    if not is_dsse(document):
        envelope.refuse("signature", "something that is no DSSE envelope", "one to add to", "name another output file")
    return document


def _signature(entry: object, where: str) -> bytes:
    fields = envelope.mapping(entry, where)
    _no_other_case(fields, where, _SIGNATURE_FIELDS)
    envelope.require(fields, where, "sig")
    if "keyid" in fields:
        envelope.text(fields["keyid"], f"{where}.keyid")
    maximum = detached.MAXIMUM_DETACHED_BYTES
    return envelope.binary(fields["sig"], f"{where}.sig", maximum, _SIGN_AGAIN, url_safe=True)


def _is_by(key: PublicKey, signed: bytes, digest: bytes, signature: bytes) -> bool:
    try:
        return detached.is_valid(key, signed, detached.check_form(key.algorithm, signature), digest)
    except MalformedSignatureError:
        return False  # of a key of another kind


def _no_other_case(found: Mapping[str, object], where: str, names: Sequence[str]) -> None:
    for name in found:
        if name not in names and name.casefold() in {known.casefold() for known in names}:
            expected = f"the fields {', '.join(names)} in this spelling"
            envelope.refuse(where, f"the field {quote(name)}", expected, _SIGN_AGAIN)
