# SPDX-License-Identifier: Apache-2.0
"""Writes container images as OCI archives, so that engines get theirs without a registry.

One layer made of a directory, one configuration, one manifest: what ``podman load`` and ``ctr images import`` take. The
archive is uncompressed, because under emulation compressing costs more than copying.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIGURATION = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def write_layer(rootfs: Path, layer: Path) -> None:
    """Write the tar archive of a root file system; hard links stay links."""
    with tarfile.open(layer, "w") as archive:
        archive.add(rootfs, ".")


def write_archive(path: Path, layer: Path, name: str, command: Sequence[str]) -> None:
    """Write an OCI archive of one image called ``name`` (with a tag) that runs ``command``."""
    digest = _digest(layer)
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": list(command), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIGURATION, configuration),
            "layers": [{"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": layer.stat().st_size}],
        }
    ).encode()
    names = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
    index = {"schemaVersion": 2, "manifests": [{**_descriptor(_MANIFEST, manifest), "annotations": names}]}
    with tarfile.open(path, "w") as archive:
        for place, data in (
            ("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode()),
            ("index.json", json.dumps(index).encode()),
            (_blob(manifest), manifest),
            (_blob(configuration), configuration),
        ):
            member = tarfile.TarInfo(place)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        archive.add(layer, f"blobs/sha256/{digest}")


def _descriptor(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


def _blob(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
