# SPDX-License-Identifier: Apache-2.0
"""Detached signatures: made, read and checked.

Accepted is what people's tools write. For a P-256 key: ECDSA with SHA-256, as DER (``openssl dgst -sha256 -sign``,
``openssl pkeyutl -sign -rawin``) or base64 of it (``cosign sign-blob``). For an Ed25519 key: the 64 bytes, or base64
of them. The key says which of the two it is. Both forms are read strictly, with one spelling each: nothing may
follow, DER is minimal, base64 has its padding and no stray bits.

What a valid signature proves is that the key's owner signed these bytes, no more: from (r, s) anybody can make
(r, n-s), which is valid too. So nothing here gives a signature an identity; the digest of what was signed is one.

A signature that is wrong in a way people commonly get wrong gets a hint. A hint never makes it right.
"""

from __future__ import annotations

import binascii
import re
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn, cast

from hauberk.bundle.errors import MalformedSignatureError, WrongSignatureError
from hauberk.bundle.keys import Algorithm, require_library

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from hauberk.bundle.keys import PrivateKey, PublicKey

MAXIMUM_SIGNATURE_BYTES = 1024
ED25519_SIGNATURE_BYTES = 64
_P256_ORDER = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551  # FIPS 186-5, NIST P-256
_DER_SEQUENCE = 0x30
_BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_COMMANDS = {
    Algorithm.ECDSA_P256: "openssl dgst -sha256 -sign KEY -out SIG FILE",
    Algorithm.ED25519: "openssl pkeyutl -sign -rawin -inkey KEY -in FILE -out SIG",
}


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Sign bytes: DER for P-256, 64 raw bytes for Ed25519, as ``openssl`` reads them."""
    require_library()
    if key.algorithm is Algorithm.ED25519:
        return cast("Ed25519PrivateKey", key.handle).sign(data)
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - lazily: memory and start-up
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return cast("EllipticCurvePrivateKey", key.handle).sign(data, ec.ECDSA(hashes.SHA256()))


def verify(key: PublicKey, data: bytes, signature: bytes) -> None:
    """Return if ``signature`` is one of ``data`` by ``key``.

    Raises ``MalformedSignatureError`` if it has not the form that such a key writes, ``WrongSignatureError`` if it is
    not a signature of these bytes by this key.
    """
    require_library()
    raw = decode(key.algorithm, signature)
    if not _is_valid(key, data, raw):
        hint = _hint(key, data, raw)
        message = (
            f"signature: found one that key {key.fingerprint[:16]} ({key.algorithm.value}) did not make for these"
            f" {len(data)} bytes, expected one made with `hauberk bundle sign` or `{_COMMANDS[key.algorithm]}`: {hint}"
        )
        raise WrongSignatureError(message)


def decode(algorithm: Algorithm, signature: bytes) -> bytes:
    """Bring a signature file's content to its binary form (DER, or 64 raw bytes), checking that form.

    Raises ``MalformedSignatureError``.
    """
    if not signature.strip():
        _malformed(
            algorithm,
            "an empty file",
            "signing failed: `openssl dgst` leaves an empty file for Ed25519 keys"
            if algorithm is Algorithm.ED25519
            else "sign again, looking at the exit code",
        )
    if algorithm is Algorithm.ED25519 and len(signature) == ED25519_SIGNATURE_BYTES:
        return signature  # any 64 bytes may be one, also such as look like the beginning of a document
    if len(signature) > MAXIMUM_SIGNATURE_BYTES:
        _malformed(algorithm, f"{len(signature)} bytes or more", "check that this is the signature file")
    if signature.lstrip().startswith((b"{", b"-----BEGIN")):
        found = "a JSON document" if signature.lstrip().startswith(b"{") else "a PEM block"
        _malformed(algorithm, found, "detached signatures are accepted, envelopes are not")
    if algorithm is Algorithm.ED25519:
        return _decode_ed25519(signature)
    return _decode_ecdsa(signature)


def _decode_ed25519(signature: bytes) -> bytes:
    raw = signature if len(signature) == ED25519_SIGNATURE_BYTES else _from_base64(Algorithm.ED25519, signature)
    if len(raw) != ED25519_SIGNATURE_BYTES:
        advice = "check that this signature belongs to this key"
        if raw[:1] == bytes([_DER_SEQUENCE]):
            advice = "this looks like an ECDSA signature, made by another key"
        _malformed(Algorithm.ED25519, f"{len(raw)} bytes", advice)
    return raw


def _decode_ecdsa(signature: bytes) -> bytes:
    algorithm = Algorithm.ECDSA_P256
    # DER begins with 0x30, "0" in ASCII; base64 of DER begins with "M": the two cannot be taken for each other.
    raw = signature if signature[0] == _DER_SEQUENCE else _from_base64(algorithm, signature)
    from cryptography.hazmat.primitives.asymmetric import utils  # noqa: PLC0415 - lazily: memory and start-up

    if len(raw) == ED25519_SIGNATURE_BYTES and raw[0] != _DER_SEQUENCE:
        advice = "this looks like an Ed25519 signature, or r and s without DER around them"
        _malformed(algorithm, f"{len(raw)} bytes that are no DER", advice)
    try:
        r, s = utils.decode_dss_signature(raw)
    except ValueError:
        _malformed(algorithm, f"{len(raw)} bytes that are no DER signature, or more than one", "sign again")
    if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER) or utils.encode_dss_signature(r, s) != raw:
        _malformed(algorithm, "numbers out of range, or DER that is not minimal", "sign again")
    return raw


def _from_base64(algorithm: Algorithm, signature: bytes) -> bytes:
    """Decode base64, in lines or in one; with at most one line end at the end.

    That is what ``base64``, ``openssl base64`` and ``cosign`` write.
    """
    lines = signature.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    text = b"".join(lines)
    if not all(lines) or not _BASE64_TEXT.fullmatch(text):
        _malformed(algorithm, f"{len(signature)} bytes that are neither that nor base64 of it", "sign again")
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        _malformed(algorithm, "base64 that is cut off or has bytes behind it", "copy the whole signature")
    if binascii.b2a_base64(raw, newline=False) != text:
        _malformed(algorithm, "base64 with stray bits at its end", "copy the signature again")
    return raw


def _is_valid(key: PublicKey, data: bytes, raw: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - lazily: memory and start-up

    try:
        if key.algorithm is Algorithm.ED25519:
            cast("Ed25519PublicKey", key.handle()).verify(raw, data)
        else:
            from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
            from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

            cast("EllipticCurvePublicKey", key.handle()).verify(raw, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _hint(key: PublicKey, data: bytes, raw: bytes) -> str:  # noqa: C901, PLR0911 - a list of cases
    """Recognise the common ways to sign the wrong thing. Only ever adds words to a refusal."""
    otherwise = "check that file, signature and key belong together and that the file was not changed after signing"
    hexadecimal = sha256(data).hexdigest().encode()
    if key.algorithm is Algorithm.ED25519:
        for signed, name in ((sha256(data).digest(), "bytes"), (hexadecimal, "text")):
            if _is_valid(key, signed, raw):
                return f"it signs the {name} of the file's SHA-256, not the file; sign the file itself"
        return otherwise
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - lazily: memory and start-up
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, utils  # noqa: PLC0415

    handle = cast("EllipticCurvePublicKey", key.handle())

    def fits(message: bytes, algorithm: ec.EllipticCurveSignatureAlgorithm) -> bool:
        try:
            handle.verify(raw, message, algorithm)
        except InvalidSignature:
            return False
        return True

    # Without -rawin, OpenSSL takes the input for a hash, of which ECDSA uses the first 32 bytes (FIPS 186-5 §6.4).
    as_hash = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    prefix = data[:32].rjust(32, b"\0")
    if fits(prefix, as_hash):
        return (
            "it signs the file's first 32 bytes as if they were its hash, as `openssl pkeyutl -sign` does without"
            " -rawin; sign again with `-rawin -digest sha256`, and destroy this signature: it fits many files"
        )
    if fits(hexadecimal[:32], as_hash) or fits(hexadecimal, ec.ECDSA(hashes.SHA256())):
        return "it signs the text of the file's SHA-256, not the file; sign the file itself"
    if fits(sha256(data).digest(), ec.ECDSA(hashes.SHA256())):
        return (
            "it signs the SHA-256 of the file's SHA-256; sign the file itself, or tell the tool that it is given a hash"
        )
    for other in (hashes.SHA384(), hashes.SHA512()):
        if fits(data, ec.ECDSA(other)):
            return f"it was made with {other.name.upper()}; sign again with SHA-256"
    return otherwise


def _malformed(algorithm: Algorithm, found: str, action: str) -> NoReturn:
    expected = {
        Algorithm.ECDSA_P256: "an ECDSA signature in DER, or base64 of it",
        Algorithm.ED25519: "the 64 bytes of an Ed25519 signature, or base64 of them",
    }[algorithm]
    message = f"signature: found {found}, expected {expected}: {action}"
    raise MalformedSignatureError(message)
