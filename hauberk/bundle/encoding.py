# SPDX-License-Identifier: Apache-2.0
"""Base64 with one spelling for each value (RFC 4648 §4 and §5).

A lenient decoder skips what it does not know, takes missing padding for granted and drops bits that stand behind the
last byte, so that many texts mean the same bytes and two programs may read one text differently. Here the padding is
there, nothing else is, and whoever writes the value again gets the same text.
"""

from __future__ import annotations

import binascii
import re

_STANDARD = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_URL_SAFE = re.compile(rb"[A-Za-z0-9_-]+={0,2}")
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def encode_base64(data: bytes) -> bytes:
    """Write bytes in the standard alphabet, padded, in one line without its end."""
    return binascii.b2a_base64(data, newline=False)


def encode_base64_url(data: bytes) -> bytes:
    """Write bytes in the alphabet for URLs and file names, padded, in one line without its end."""
    return encode_base64(data).translate(bytes.maketrans(b"+/", b"-_"))


def decode_base64(text: bytes, *, url_safe: bool = False) -> bytes:
    """Read base64 of at least one byte; with ``url_safe`` in either alphabet, but not in both at once.

    Raises ``ValueError``, whose text says what was found.
    """
    if not _STANDARD.fullmatch(text):
        if not url_safe or not _URL_SAFE.fullmatch(text):
            message = "bytes that are not base64"
            raise ValueError(message)
        text = text.translate(_TO_STANDARD)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        message = "base64 that is cut off or has bytes behind it"
        raise ValueError(message) from None
    if encode_base64(data) != text:
        message = "base64 with stray bits at its end"
        raise ValueError(message)
    return data
