# SPDX-License-Identifier: Apache-2.0
"""Signatures in JSON: what :mod:`hauberk.bundle.sigstore` and :mod:`hauberk.bundle.dsse` have in common.

An envelope has to be read before it is known to be anybody's, so it is hostile input. Its size is bounded before the
first byte is looked at, and the number of its values before it is parsed: a few bytes of text can be a hundred bytes of
memory. The reader is the strict one of bundles (no key twice, no fractions, nothing behind the end).

JSON that protobuf describes has other spellings which its parsers must take: ``message_signature`` for
``messageSignature``, base64 for URLs or without padding, numbers for the names of enumerations, null for what is
absent. No tool writes these, and each is a way for two readers to see two documents. They are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from hauberk.bundle import canonical
from hauberk.bundle.detached import ED25519_SIGNATURE_BYTES
from hauberk.bundle.encoding import decode_base64
from hauberk.bundle.errors import MalformedBundleError, MalformedSignatureError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A DSSE envelope holds its payload, a bundle of at most 8 MiB, in base64, and slashes may be escaped.
MAXIMUM_ENVELOPE_BYTES = 12 * 1024 * 1024
MAXIMUM_VALUES = 4096  # a Sigstore bundle with a log entry and its proof has some 60
_SEPARATORS = b"[{:,"  # at least one stands before every value but the first; none is a character of base64


def is_envelope(signature: bytes) -> bool:
    """Whether a signature file can only be an envelope: a detached signature never begins like one.

    DER begins with "0", base64 has no brace. Any 64 bytes may be an Ed25519 signature, and no envelope is that short.
    """
    return len(signature) != ED25519_SIGNATURE_BYTES and signature.lstrip().startswith(b"{")


def load(signature: bytes) -> dict[str, object]:
    """Read a JSON object. Raises ``MalformedSignatureError``."""
    if len(signature) > MAXIMUM_ENVELOPE_BYTES:
        refuse(
            "signature",
            f"{len(signature)} bytes or more",
            f"at most {MAXIMUM_ENVELOPE_BYTES}",
            "check that this is the signature file",
        )
    values = sum(signature.count(separator) for separator in _SEPARATORS)
    if values > MAXIMUM_VALUES:
        refuse(
            "signature",
            f"JSON of some {values} values",
            f"at most {MAXIMUM_VALUES}",
            "check that this is the signature file",
        )
    try:
        document = canonical.load(signature, maximum_bytes=MAXIMUM_ENVELOPE_BYTES, what="signature")
    except MalformedBundleError as error:
        raise MalformedSignatureError(*error.problems) from error
    return mapping(document, "signature")


def mapping(found: object, where: str) -> dict[str, object]:
    """Return a JSON object. Raises ``MalformedSignatureError``."""
    if not isinstance(found, dict):
        refuse(where, kind(found), "an object", "sign again with a tool that writes this form")
    return found


def text(found: object, where: str) -> str:
    """Return a string. Raises ``MalformedSignatureError``."""
    if not isinstance(found, str):
        refuse(where, kind(found), "a string", "sign again with a tool that writes this form")
    return found


def sequence(found: object, where: str, maximum: int) -> list[object]:
    """Return a list of at most ``maximum`` entries. Raises ``MalformedSignatureError``."""
    if not isinstance(found, list):
        refuse(where, kind(found), "a list", "sign again with a tool that writes this form")
    if len(found) > maximum:
        refuse(where, f"{len(found)} entries", f"at most {maximum}", "remove what is not needed")
    return found


def require(found: Mapping[str, object], where: str, *names: str) -> None:
    """Refuse an object in which one of these fields is missing. Raises ``MalformedSignatureError``."""
    if missing := [name for name in names if name not in found]:
        refuse(where, f"no field {', '.join(missing)}", f"the fields {', '.join(names)}", "sign again")


def ascii_bytes(found: str, where: str) -> bytes:
    """Return a string as bytes, as base64 has them. Raises ``MalformedSignatureError``."""
    try:
        return found.encode("ascii")
    except UnicodeEncodeError:
        refuse(where, "characters that are not ASCII", "base64", "sign again")


def binary(found: object, where: str, maximum: int, action: str, *, url_safe: bool = False) -> bytes:
    """Return what a string of at most ``maximum`` characters is base64 of. Raises ``MalformedSignatureError``."""
    characters = ascii_bytes(text(found, where), where)
    if len(characters) > maximum:
        refuse(where, f"{len(characters)} characters", f"at most {maximum}", action)
    try:
        return decode_base64(characters, url_safe=url_safe)
    except ValueError as error:
        refuse(where, str(error), "base64", action)


def kind(found: object) -> str:
    """Name the kind of a JSON value, for texts."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return names.get(type(found), "null")


def refuse(where: str, found: str, expected: str, action: str) -> NoReturn:
    """Raise ``MalformedSignatureError`` in the house's words."""
    message = f"{where}: found {found}, expected {expected}: {action}"
    raise MalformedSignatureError(message)
