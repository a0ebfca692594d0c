# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a bundle, a key or a signature.

One family, so that a caller can refuse with one ``except``, and four branches, because they end in different exit
codes and different advice: the bytes of a bundle, a key, a signature, and a library that is not installed. Every text
says what was found, what was expected and what to do next.
"""

from __future__ import annotations

from hauberk.errors import HauberkError


class BundleError(HauberkError):
    """Base of every refusal of this package. ``problems`` holds one text per finding, in the order of the input."""

    def __init__(self, *problems: str) -> None:
        """Keep each problem; the exception's text is one per line."""
        super().__init__("\n".join(problems))
        self.problems = problems


class MalformedBundleError(BundleError):
    """The bytes are not a bundle, or not in canonical form."""


class PolicyFilesError(BundleError):
    """The directory cannot become a bundle: a policy is invalid, or an entry is none that a bundle can hold."""


class SigningKeyError(BundleError):
    """A key file cannot be used: wrong kind, wrong format, wrong passphrase."""


class SignatureError(BundleError):
    """Base: the signature does not prove anything about these bytes."""


class MalformedSignatureError(SignatureError):
    """The signature file has not the form that a key of this algorithm writes."""


class WrongSignatureError(SignatureError):
    """A signature in the right form, but not of these bytes by this key."""


class TooFewSignaturesError(SignatureError):
    """Signatures of fewer different known keys than are needed."""


class MissingLibraryError(BundleError):
    """The ``cryptography`` library is not installed; nothing can be signed or verified without it."""

    exit_code = 3


QUOTE_LIMIT = 80


def quote(found: object) -> str:
    """Quote what was found, escaped and cut short, so that hostile input cannot flood or repaint a terminal."""
    text = ascii(found if not isinstance(found, str) else found[: QUOTE_LIMIT + 1])
    return text if len(text) <= QUOTE_LIMIT else f"{text[:QUOTE_LIMIT]}…"
