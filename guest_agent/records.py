# SPDX-License-Identifier: Apache-2.0
"""What the agent remembers of each workload across its own restarts, one JSON file each below ``/run``.

The kernel alone says what is in force. A record only adds what alerts and status need (names, rules, the init's
pid), is believed only if its ids and table digest are those the kernel holds, and may be missing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from guest_agent.workloads.interchange import rule_set_from_json, rule_set_to_json
from guest_agent.workloads.registry import MAXIMUM_WORKLOAD_ID, Identity

if TYPE_CHECKING:
    from pathlib import Path

    from hauberk.policy.rules import RuleSet
    from hauberk.policy.selectors import WorkloadIdentity

logger = logging.getLogger(__name__)

_RESERVATION: Final = "next-workload-id"
_LOCK: Final = "lock"


@dataclass(frozen=True, slots=True)
class Record:
    """One workload: what kernel and people know it by, and its rules as the kernel's paths need them."""

    workload_id: int
    container_id: str
    table_digest: str
    identity: Identity
    name: str
    namespace: str
    container_name: str
    image: str
    labels: tuple[tuple[str, str], ...]
    policies: tuple[str, ...]
    aliases: tuple[str, ...]
    unenforced: int
    rule_set: RuleSet

    @classmethod
    def make(  # noqa: PLR0913 - the parts of a record
        cls,
        *,
        workload_id: int,
        container_id: str,
        table_digest: str,
        identity: Identity,
        names: WorkloadIdentity,
        policies: tuple[str, ...],
        aliases: tuple[str, ...],
        unenforced: int,
        rule_set: RuleSet,
    ) -> Record:
        """Put a record together."""
        return cls(
            workload_id, container_id, table_digest, identity, names.name, names.namespace, names.container_name,
            names.image, tuple(sorted(names.labels.items())), policies, aliases, unenforced, rule_set,
        )  # fmt: skip

    def encode(self) -> bytes:
        """Give the record as JSON."""
        identity = self.identity
        return json.dumps(
            {
                "workloadId": self.workload_id,
                "containerId": self.container_id,
                "tableDigest": self.table_digest,
                "identity": [
                    identity.pid, identity.start_time, identity.cgroup_id, identity.cgroup_path,
                    identity.mount_namespace,
                ],
                "names": [self.name, self.namespace, self.container_name, self.image],
                "labels": self.labels,
                "policies": self.policies,
                "aliases": self.aliases,
                "unenforced": self.unenforced,
                "ruleSet": rule_set_to_json(self.rule_set),
            }
        ).encode()  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Read back. Raises ValueError, KeyError or TypeError for anything else than a record."""
        found = json.loads(data)
        pid, start_time, cgroup_id, cgroup_path, mount_namespace = found["identity"]
        name, namespace, container_name, image = map(str, found["names"])
        return cls(
            workload_id=int(found["workloadId"]),
            container_id=str(found["containerId"]),
            table_digest=str(found["tableDigest"]),
            identity=Identity(int(pid), int(start_time), int(cgroup_id), str(cgroup_path), int(mount_namespace)),
            name=name,
            namespace=namespace,
            container_name=container_name,
            image=image,
            labels=tuple((str(key), str(value)) for key, value in found["labels"]),
            policies=tuple(map(str, found["policies"])),
            aliases=tuple(map(str, found["aliases"])),
            unenforced=int(found["unenforced"]),
            rule_set=rule_set_from_json(found["ruleSet"]),
        )


class RecordStore:
    """The directory of records. Losing one costs names in alerts: writing raises, reading logs."""

    def __init__(self, directory: Path) -> None:
        """Make the directory, root's alone. Raises OSError."""
        self._directory = directory
        self._lock: int | None = None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def claim(self) -> None:
        """Make this process the only agent of this directory until it ends. Raises OSError.

        A second agent would take the first one's rights in the kernel away before it noticed that there is one.
        """
        path = self._directory / _LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            message = f"another agent holds {path} ({error.strerror}); stop that one before starting this one"
            raise OSError(message) from error
        self._lock = descriptor

    def give_up(self) -> None:
        """Let another agent claim the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, record: Record) -> None:
        """Write a record whole. Raises OSError."""
        self._replace(self._path(record.workload_id), record.encode())

    def reserve(self, below: int) -> None:
        """Note that workload ids below ``below`` may be used from now on. Raises OSError."""
        self._replace(self._directory / _RESERVATION, str(below).encode("ascii"))

    def reserved_below(self) -> int | None:
        """Give what was last reserved, None when nothing (readable) was."""
        try:
            text = (self._directory / _RESERVATION).read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("the reservation of workload ids cannot be read: %s", error)
            return None
        return int(text) if text.isdigit() and 0 < int(text) <= MAXIMUM_WORKLOAD_ID else None

    def read(self, workload_id: int) -> Record | None:
        """Read a record, None when there is none that can be read."""
        try:
            return Record.decode(self._path(workload_id).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("the record of workload %d cannot be used: %s", workload_id, error)
            return None

    def remove(self, workload_id: int) -> None:
        """Remove a record; one that is not there is fine."""
        try:
            self._path(workload_id).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the record of workload %d cannot be removed: %s", workload_id, error)

    def keep_only(self, workload_ids: set[int]) -> None:
        """Remove the records of all other workloads."""
        for path in self._directory.iterdir():
            if path.name in (_RESERVATION, _LOCK):
                continue
            if path.suffix != ".json" or not path.stem.isdigit() or int(path.stem) not in workload_ids:
                path.unlink(missing_ok=True)

    def _replace(self, path: Path, data: bytes) -> None:
        """Put a file in place whole, or leave nothing of the attempt. Raises OSError."""
        unfinished = path.with_suffix(".new")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _path(self, workload_id: int) -> Path:
        return self._directory / f"{workload_id}.json"
