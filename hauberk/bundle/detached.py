# SPDX-License-Identifier: Apache-2.0
"""One signature by one key: made, read and checked. Detached files hold one; envelopes hold one or more.

Accepted is what people's tools write. For a P-256 key: ECDSA with SHA-256, as DER (``openssl dgst -sha256 -sign``,
``openssl pkeyutl -sign -rawin``) or base64 of it (``cosign sign-blob``). For an Ed25519 key: the 64 bytes, or base64
of them. The key says which of the two it is. Both forms are read strictly, with one spelling each: nothing may
follow, DER is minimal, base64 has its padding and no stray bits.

What a valid signature proves is that the key's owner signed these bytes, no more: from (r, s) anybody can make
(r, n-s), which is valid too. So nothing here gives a signature an identity; the digest of what was signed is one.

A signature that is wrong in a way people commonly get wrong gets a hint. A hint never makes it right.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn, cast

from hauberk.bundle.encoding import decode_base64
from hauberk.bundle.errors import MalformedSignatureError, WrongSignatureError
from hauberk.bundle.keys import Algorithm, require_library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from hauberk.bundle.keys import PrivateKey, PublicKey

MAXIMUM_DETACHED_BYTES = 1024  # base64 of DER in lines takes some 100
ED25519_SIGNATURE_BYTES = 64
_P256_ORDER = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551  # FIPS 186-5, NIST P-256
_DER_SEQUENCE = 0x30
_OTHERWISE = "check that file, signature and key belong together and that the file was not changed after signing"
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


def verify_one(
    keys: Sequence[PublicKey], data: bytes, form: Callable[[Algorithm, bytes], bytes], signature: bytes
) -> PublicKey:
    """Give the first of the keys that made ``signature`` for these bytes.

    ``form`` is :func:`decode` for the content of a file, :func:`check_form` for the bytes that an envelope holds.
    Raises ``MalformedSignatureError`` if it has a form that none of the keys writes, ``WrongSignatureError`` if none
    of them made it for these bytes.
    """
    require_library()
    raw: dict[Algorithm, bytes] = {}
    malformed: list[str] = []
    for algorithm in dict.fromkeys(key.algorithm for key in keys):
        try:
            raw[algorithm] = form(algorithm, signature)
        except MalformedSignatureError as error:
            malformed.extend(error.problems)
    if not raw:
        raise MalformedSignatureError(*malformed)
    fitting = [key for key in keys if key.algorithm in raw]
    digest = sha256(data).digest()
    for key in fitting:
        if is_valid(key, data, raw[key.algorithm], digest):
            return key
    hints = [hint for key in fitting if (hint := _mistake(key, data, raw[key.algorithm], digest))]
    names = ", ".join(f"{key.fingerprint[:16]} ({key.algorithm.value})" for key in fitting)
    made_by = f"that key {names} did not make" if len(fitting) == 1 else f"that none of the keys {names} made"
    message = (
        f"signature: found one {made_by} for these {len(data)} bytes, expected one made with `hauberk bundle sign` or"
        f" `{_COMMANDS[fitting[0].algorithm]}`: {hints[0] if hints else _OTHERWISE}"
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
    if len(signature) > MAXIMUM_DETACHED_BYTES:
        _malformed(algorithm, f"{len(signature)} bytes or more", "check that this is the signature file")
    if signature.lstrip().startswith((b"{", b"-----BEGIN")):
        found = "a JSON document" if signature.lstrip().startswith(b"{") else "a PEM block"
        _malformed(algorithm, found, "check that this is the signature file")
    # DER begins with 0x30, "0" in ASCII; base64 of DER begins with "M": the two cannot be taken for each other.
    is_der = algorithm is Algorithm.ECDSA_P256 and signature[0] == _DER_SEQUENCE
    return check_form(algorithm, signature if is_der else _from_base64(algorithm, signature))


def check_form(algorithm: Algorithm, raw: bytes) -> bytes:
    """Return a signature in binary form (minimal DER, or 64 bytes) if it has that form, exactly.

    Raises ``MalformedSignatureError``.
    """
    if algorithm is Algorithm.ED25519:
        if len(raw) != ED25519_SIGNATURE_BYTES:
            advice = "check that this signature belongs to this key"
            if raw[:1] == bytes([_DER_SEQUENCE]):
                advice = "this looks like an ECDSA signature, made by another key"
            _malformed(algorithm, f"{len(raw)} bytes", advice)
        return raw
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


def is_valid(key: PublicKey, data: bytes, raw: bytes, digest: bytes | None = None) -> bool:
    """Whether ``raw``, which has the form that :func:`check_form` gives, is a signature of ``data`` by ``key``.

    ``digest`` is the SHA-256 of ``data``; whoever tries many keys on large data computes it once.
    """
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - lazily: memory and start-up

    try:
        if key.algorithm is Algorithm.ED25519:
            cast("Ed25519PublicKey", key.handle()).verify(raw, data)
        else:
            from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
            from cryptography.hazmat.primitives.asymmetric import ec, utils  # noqa: PLC0415

            prehashed = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
            cast("EllipticCurvePublicKey", key.handle()).verify(raw, digest or sha256(data).digest(), prehashed)
    except InvalidSignature:
        return False
    return True


def _mistake(key: PublicKey, data: bytes, raw: bytes, digest: bytes) -> str:  # noqa: C901, PLR0911 - a list of cases
    """Recognise the common ways to sign the wrong thing, else "". Only ever adds words to a refusal."""
    hexadecimal = digest.hex().encode()
    if key.algorithm is Algorithm.ED25519:
        for signed, name in ((digest, "bytes"), (hexadecimal, "text")):
            if is_valid(key, signed, raw):
                return f"it signs the {name} of the file's SHA-256, not the file; sign the file itself"
        return ""
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
    if fits(digest, ec.ECDSA(hashes.SHA256())):
        return (
            "it signs the SHA-256 of the file's SHA-256; sign the file itself, or tell the tool that it is given a hash"
        )
    for other in (hashes.SHA384(), hashes.SHA512()):
        if fits(data, ec.ECDSA(other)):
            return f"it was made with {other.name.upper()}; sign again with SHA-256"
    return ""


def _from_base64(algorithm: Algorithm, signature: bytes) -> bytes:
    """Decode base64, in lines or in one; with at most one line end at the end.

    That is what ``base64``, ``openssl base64`` and ``cosign`` write.
    """
    lines = signature.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    if not all(lines):
        _malformed(algorithm, f"{len(signature)} bytes with empty lines", "sign again")
    try:
        return decode_base64(b"".join(lines))
    except ValueError as error:
        _malformed(algorithm, f"{len(signature)} bytes, {error}", "copy the whole signature again, or sign again")


def _malformed(algorithm: Algorithm, found: str, action: str) -> NoReturn:
    expected = {
        Algorithm.ECDSA_P256: "an ECDSA signature in DER, or base64 of it",
        Algorithm.ED25519: "the 64 bytes of an Ed25519 signature, or base64 of them",
    }[algorithm]
    message = f"signature: found {found}, expected {expected}: {action}"
    raise MalformedSignatureError(message)
