# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - a command line prints
"""``hauberk bundle``: make keys, build, sign, verify and show bundles, and submit a successor.

Thin: it reads files with a bound, calls :mod:`hauberk.bundle`, writes results whole or not at all, and turns errors
into exit codes: 1 for "no" (an invalid policy, a bad signature), 2 for wrong usage (a file that cannot be read, a
private key that is there already), 3 for an environment that lacks something (the library for signatures, room on the
disk). Nothing of ``hauberk.bundle`` is imported before a command runs.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from hauberk.cli import agent, manifest
from hauberk.errors import visible

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from hauberk.bundle import Bundle
    from hauberk.bundle.keys import PublicKey

    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it

DONE, NO, USAGE, ENVIRONMENT = 0, 1, 2, 3


def register(subparsers: _Subparsers) -> None:
    """Add ``bundle`` and its commands to the parser of ``hauberk``."""
    group = subparsers.add_parser("bundle", help="make, sign, verify and show policy bundles")
    commands = group.add_subparsers(dest="bundle_command", required=True, metavar="COMMAND")

    keygen = commands.add_parser("keygen", help="make a key pair for signing")
    keygen.add_argument(
        "-o",
        "--output",
        default="hauberk",
        metavar="PREFIX",
        help="write PREFIX.key and PREFIX.pub (default: %(default)s)",
    )
    keygen.add_argument("--algorithm", choices=("ecdsa-p256", "ed25519"), default="ecdsa-p256")
    keygen.add_argument("--passphrase-file", metavar="FILE", help="encrypt the private key with this file's first line")
    keygen.set_defaults(run=_command(_keygen))

    build = commands.add_parser("build", help="build a bundle from a directory of policies")
    build.add_argument("directory", metavar="DIR")
    build.add_argument("-o", "--output", required=True, metavar="FILE")
    build.add_argument("--name", required=True, help="what the bundle is for; the trust root pins it")
    build.add_argument("--version", required=True, type=int, metavar="N", help="integer from 1; counts upwards")
    build.add_argument(
        "--default",
        choices=("deny", "audit", "allow"),
        default="deny",
        help="for workloads that no policy covers (default: %(default)s)",
    )
    build.add_argument(
        "--posture",
        choices=("block", "audit", "allow"),
        default="block",
        help="for accesses that an allow-list leaves unmatched (default: %(default)s)",
    )
    manifest.add_options(build)
    build.set_defaults(run=_command(_build))

    sign = commands.add_parser("sign", help="write a signature of a bundle, or add one to a DSSE envelope")
    sign.add_argument("file", metavar="FILE")
    sign.add_argument("--key", required=True, metavar="KEY", help="private key, PEM")
    sign.add_argument("-o", "--output", required=True, metavar="SIG")
    sign.add_argument(
        "--format",
        choices=("detached", "sigstore", "dsse"),
        default="detached",
        help="detached: the signature alone, as openssl writes it; sigstore: as cosign writes it; dsse: an envelope for"
        " several signers in turn, where SIG is added to if it is there (default: %(default)s)",
    )
    sign.add_argument("--passphrase-file", metavar="FILE", help="its first line opens the private key")
    sign.set_defaults(run=_command(_sign))

    verify = commands.add_parser("verify", help="check a bundle's signatures, and its name and version if asked")
    verify.add_argument("file", metavar="FILE")
    verify.add_argument("--signature", required=True, metavar="SIG", help="in any of the formats of `sign`")
    verify.add_argument(
        "--key", required=True, action="append", metavar="PUB", help="public key, PEM; repeat it for several signers"
    )
    verify.add_argument(
        "--threshold",
        type=int,
        default=1,
        metavar="K",
        help="how many of the keys must have signed (default: %(default)s)",
    )
    verify.add_argument("--minimum-version", type=int, metavar="N", help="refuse older bundles")
    verify.add_argument("--name", help="refuse bundles of another name")
    verify.set_defaults(run=_command(_verify))

    show = commands.add_parser("show", help="show what a bundle holds; checks no signature")
    show.add_argument("file", metavar="FILE")
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=_command(_show))

    submit = commands.add_parser("submit", help="give a running agent a successor of the bundle it holds; as root")
    submit.add_argument("file", metavar="FILE")
    submit.add_argument("--signature", required=True, metavar="SIG", help="in any of the formats of `sign`")
    agent.add_socket(submit)
    submit.set_defaults(run=_command(_submit))


def _command(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Turn the errors of a command into text on stderr and an exit code."""

    def run(arguments: argparse.Namespace) -> int:
        from hauberk.bundle import errors  # noqa: PLC0415 - nothing is imported before a command runs

        try:
            return action(arguments)
        except errors.SigningKeyError as error:
            return _fail(USAGE, *error.problems)
        except errors.BundleError as error:
            return _fail(error.exit_code, *error.problems)
        except BrokenPipeError:
            raise  # the reader of the answer went away
        except OSError as error:
            return _fail(*_explain_os_error(error))

    return run


def _explain_os_error(error: OSError) -> tuple[int, str]:
    path = f"{error.filename}: " if error.filename else ""
    text = f"{path}found: {error.strerror or error}"
    if isinstance(error, FileExistsError):
        return USAGE, f"{text}; expected a name that is free: choose another one"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return USAGE, f"{text}; expected a file that can be used: check the path and its permissions"
    return ENVIRONMENT, f"{text}; expected to read and write here: check the disk"


def _keygen(arguments: argparse.Namespace) -> int:
    from pathlib import Path  # noqa: PLC0415

    from hauberk.bundle import files, keys  # noqa: PLC0415

    passphrase = _passphrase(arguments.passphrase_file)
    private_path, public_path = Path(f"{arguments.output}.key"), Path(f"{arguments.output}.pub")
    key = keys.generate(keys.Algorithm(arguments.algorithm))
    files.create_exclusively(private_path, keys.private_pem(key, passphrase), 0o600)
    try:
        files.create_exclusively(public_path, keys.public_pem(key.public()), 0o644)
    except OSError:
        private_path.unlink()
        raise
    written = f"wrote {private_path} (private: keep it off the machines it protects) and {public_path}"
    print(visible(written))
    print(f"{key.algorithm.value}, fingerprint {key.public().fingerprint}")
    return DONE


def _build(arguments: argparse.Namespace) -> int:
    from hauberk.bundle import builder, document, errors, files  # noqa: PLC0415

    try:
        document.check_name(arguments.name, "--name")
        document.check_version(arguments.version, "--version")
        terms = manifest.terms_of(arguments)
    except errors.MalformedBundleError as error:
        return _fail(USAGE, *error.problems)
    built = builder.assemble(
        arguments.directory, arguments.name, arguments.version, arguments.default, arguments.posture, terms
    )
    files.write_atomically(arguments.output, built.data)
    for warning in built.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if built.left_out:
        shown = ", ".join(errors.quote(name) for name in built.left_out[:10])
        more = f" and {len(built.left_out) - 10} more" if len(built.left_out) > 10 else ""  # noqa: PLR2004
        print(f"note: not in the bundle, because not *.yaml or *.yml, or hidden: {shown}{more}", file=sys.stderr)
    print(f"wrote {visible(arguments.output)}: {_title(built.bundle)}, {len(built.bundle.policies)} policy files")
    print(f"sha256 {built.bundle.digest}")
    return DONE


def _sign(arguments: argparse.Namespace) -> int:
    from hauberk.bundle import document, files, keys, signatures  # noqa: PLC0415

    if any(path and files.is_same(arguments.output, path) for path in _read_by_sign(arguments)):
        message = f"{arguments.output}: found a file that signing reads, expected a place for the signature"
        return _fail(USAGE, f"{message}: choose another name")
    data = files.read_bounded(arguments.file, document.MAXIMUM_BUNDLE_BYTES)
    bundle = document.parse(data)  # never sign what no machine would accept
    passphrase = _passphrase(arguments.passphrase_file)
    if not files.is_private(arguments.key):
        warning = f"warning: {arguments.key}: others than its owner may use this private key: chmod 600 it"
        print(visible(warning), file=sys.stderr)
    pem = files.read_bounded(arguments.key, keys.MAXIMUM_KEY_BYTES)
    key = keys.load_private(pem, passphrase, arguments.key)
    form = signatures.Form(arguments.format)
    existing = _existing(arguments.output)
    if form is not signatures.Form.DSSE and existing is not None and signatures.holds_signatures_of_several(existing):
        found = f"{arguments.output}: found a DSSE envelope, which may hold signatures of others"
        return _fail(USAGE, f"{found}, expected a name that is free: add --format dsse, or choose another name")
    signature = signatures.sign_as(form, key, data, existing)
    signatures.verify(key.public(), data, signature)
    what = f"{key.algorithm.value} signature of {_title(bundle)}"
    if signature == existing:
        print(f"left {visible(arguments.output)} as it is: it holds this key's {what} already")
    else:
        added = form is signatures.Form.DSSE and existing is not None
        files.write_atomically(arguments.output, signature)
        print(f"{'added to' if added else 'wrote'} {visible(arguments.output)}: {what}")
    print(f"sha256 {bundle.digest}, key fingerprint {key.public().fingerprint}")
    return DONE


def _read_by_sign(arguments: argparse.Namespace) -> tuple[str | None, ...]:
    """Give the files that a signature must not take the place of: a lost private key cannot be made again."""
    return arguments.file, arguments.key, arguments.passphrase_file


def _existing(path: str) -> bytes | None:
    """Read the file that lies where a signature is to be written; None if none does."""
    from pathlib import Path  # noqa: PLC0415

    from hauberk.bundle import files, signatures  # noqa: PLC0415

    if not Path(path).is_file():  # a pipe, too, which writing refuses, and which reading would wait for
        return None
    return files.read_bounded(path, signatures.MAXIMUM_SIGNATURE_BYTES)


def _verify(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime  # noqa: PLC0415

    from hauberk.bundle import document, errors, files, signatures  # noqa: PLC0415

    try:
        if arguments.name is not None:
            document.check_name(arguments.name, "--name")
        if arguments.minimum_version is not None:
            document.check_version(arguments.minimum_version, "--minimum-version")
    except errors.MalformedBundleError as error:
        return _fail(USAGE, *error.problems)
    names = _public_keys(arguments.key)
    signatures.check_threshold(arguments.threshold, len(names), "--threshold")
    data = files.read_bounded(arguments.file, document.MAXIMUM_BUNDLE_BYTES)
    signature = files.read_bounded(arguments.signature, signatures.MAXIMUM_SIGNATURE_BYTES)
    if len(data) > document.MAXIMUM_BUNDLE_BYTES:
        found = f"{arguments.file}: found more than {document.MAXIMUM_BUNDLE_BYTES} bytes"
        return _fail(NO, f"{found}, expected a bundle: take the right file")
    signed_by = signatures.verify_any(list(names), arguments.threshold, data, signature)
    bundle = document.parse(data)
    if arguments.name is not None and bundle.name != arguments.name:
        return _fail(NO, f"bundle: found the name {bundle.name}, expected {arguments.name}: take the right bundle")
    if arguments.minimum_version is not None and bundle.version < arguments.minimum_version:
        found = f"bundle {bundle.name}: found version {bundle.version}"
        return _fail(NO, f"{found}, expected {arguments.minimum_version} or newer: take a newer bundle")
    print(f"good: {_title(bundle)}, signed by {len(signed_by)} of {len(names)} keys, {arguments.threshold} needed")
    for key in signed_by:
        print(f"  {visible(names[key])}: {key.algorithm.value} key {key.fingerprint}")
    print(f"sha256 {bundle.digest}")
    if bundle.terms.expired(datetime.now(UTC)):
        print(f"warning: it has expired ({bundle.terms.expires}); agents warn of that and go on", file=sys.stderr)
    return DONE


def _public_keys(paths: list[str]) -> dict[PublicKey, str]:
    """Read public keys and give each with its file's name; the same key twice would make one signer look like two."""
    from hauberk.bundle import errors, files, keys  # noqa: PLC0415

    names: dict[PublicKey, str] = {}
    for path in paths:
        key = keys.load_public(files.read_bounded(path, keys.MAXIMUM_KEY_BYTES), path)
        if key in names:
            message = f"{path}: found the same key as in {names[key]}, expected each key once: name it once"
            raise errors.SigningKeyError(message)
        names[key] = path
    return names


def _show(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime  # noqa: PLC0415
    from hashlib import sha256  # noqa: PLC0415

    from hauberk.bundle import document, files  # noqa: PLC0415

    data = files.read_bounded(arguments.file, document.MAXIMUM_BUNDLE_BYTES)
    bundle = document.parse(data)
    policies = [
        {"file": policy.file, "bytes": len(text), "sha256": sha256(text).hexdigest()}
        for policy, text in ((policy, policy.text.encode()) for policy in bundle.policies)
    ]
    if arguments.json:
        described = {
            "name": bundle.name,
            "version": bundle.version,
            "default": bundle.default.value,
            **manifest.as_json(bundle),
            "sha256": bundle.digest,
            "bytes": len(data),
            "policies": policies,
            "signatureChecked": False,
        }
        print(json.dumps(described, indent=2))
        return DONE
    print(f"name      {bundle.name}")
    print(f"version   {bundle.version}")
    print(f"default   {bundle.default.value} (workloads that no policy covers)")
    print(f"posture   file: {bundle.posture.value} (what an allow-list leaves unmatched)")
    for line in manifest.as_text(bundle, datetime.now(UTC)):
        print(line)
    print(f"sha256    {bundle.digest}")
    print(f"size      {len(data)} bytes")
    print("signature not checked; `hauberk bundle verify` does")
    print(f"policies  {len(policies)} files")
    for policy in policies:
        print(f"  {policy['file']}  ({policy['bytes']} bytes)")
    return DONE


def _submit(arguments: argparse.Namespace) -> int:
    from hauberk.bundle import document, files, signatures  # noqa: PLC0415

    data = files.read_bounded(arguments.file, document.MAXIMUM_BUNDLE_BYTES)
    document.parse(data)  # what is no bundle is told here; everything else the agent says
    signature = files.read_bounded(arguments.signature, signatures.MAXIMUM_SIGNATURE_BYTES)
    return agent.submit(arguments, data, signature)


def _title(bundle: Bundle) -> str:
    return f"bundle {bundle.name} version {bundle.version}"


def _passphrase(path: str | None) -> bytes | None:
    """Read the first line of a passphrase file; None if no file was named."""
    if path is None:
        return None
    from hauberk.bundle import files, keys  # noqa: PLC0415

    line, _, _ = files.read_bounded(path, keys.MAXIMUM_PASSPHRASE_BYTES + 1).partition(b"\n")
    return keys.check_passphrase(line.removesuffix(b"\r"))


def _fail(code: int, *problems: str) -> int:
    for problem in problems:
        print(f"error: {visible(problem)}", file=sys.stderr)
    return code
