# SPDX-License-Identifier: Apache-2.0
"""What the agent remembers of each workload across its own restarts, one JSON file each below ``/run``.

The kernel alone says what is in force. A record adds what alerts, status and successors need (names, rules, the init's
pid, where its paths led) and is believed only if its ids and table digest are those the kernel holds. Without one the
container stays under its rules, alerts name none, and the next successor refuses it everything. Rules about packets
are in no record: they follow from the bundle in force and the container's names.

Before a successor's rules come into force, each workload's record under them lies beside the present one
(``ID.next``): whichever the kernel holds after a kill is the one that counts. The successors themselves, bundle and
signature, are kept in the order of their chain; a restarted agent verifies all of them anew, and what the kernel says
was accepted must be there.
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
from hauberk.policy.selectors import WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hauberk.policy.rules import RuleSet

logger = logging.getLogger(__name__)

MAXIMUM_CHAIN: Final = 64
"""Most successors within one boot."""
MAXIMUM_CHAIN_BYTES: Final = 64 << 20
"""Most bytes of all of them: they lie in memory, below /run."""
_RESERVATION: Final = "next-workload-id"
_NETWORK: Final = "network"
_ABSENT: Final = "registrations"
_CHAIN: Final = "successors"
_NEXT: Final = ".next"
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
    image_digest: str = ""
    root_path: str = ""  # where its root stood when it was registered, without a link on the way
    held: bool = False  # whether it has been under rules ever since it started
    forms: tuple[tuple[str, tuple[str, ...]], ...] = ()  # what its paths led to before it ran
    network_namespace: int = 0  # its inode; 0: not known
    refused: bool = False  # whether a successor refuses it everything
    exposed: bool = False  # whether it may have rights to undo rules about packets that nothing refuses it

    @property
    def names(self) -> WorkloadIdentity:
        """What policies select it by."""
        return WorkloadIdentity(
            self.name, self.namespace, dict(self.labels), self.container_name, self.image, self.image_digest
        )

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
        root_path: str = "",
        held: bool = False,
        forms: tuple[tuple[str, tuple[str, ...]], ...] = (),
        network_namespace: int = 0,
        exposed: bool = False,
    ) -> Record:
        """Put a record together."""
        return cls(
            workload_id, container_id, table_digest, identity, names.name, names.namespace, names.container_name,
            names.image, tuple(sorted(names.labels.items())), policies, aliases, unenforced, rule_set,
            names.image_digest, root_path, held, forms, network_namespace, exposed=exposed,
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
                "imageDigest": self.image_digest,
                "rootPath": self.root_path,
                "held": self.held,
                "forms": self.forms,
                "networkNamespace": self.network_namespace,
                "refused": self.refused,
                "exposed": self.exposed,
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
            image_digest=str(found["imageDigest"]),
            root_path=str(found["rootPath"]),
            held=found["held"] is True,
            forms=tuple((str(path), tuple(map(str, forms))) for path, forms in found["forms"]),
            network_namespace=int(found["networkNamespace"]),
            refused=found["refused"] is True,
            exposed=found["exposed"] is True,
        )


class RecordStore:
    """The directory of records, and of the chain of successors. Writing raises.

    Of a workload's record, reading logs: losing it refuses that container everything under the next successor. Of the
    chain, reading raises: without one of its links no agent starts, since no older bundle may take its place.
    """

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

    def write_network(self, data: bytes) -> None:
        """Write what networks are remembered by: learned names, periods of quotas. Raises OSError."""
        self._replace(self._directory / _NETWORK, data)

    def read_network(self) -> bytes:
        """Give what :meth:`write_network` wrote last; nothing when there is nothing that can be read."""
        try:
            return (self._directory / _NETWORK).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            logger.warning("what is remembered of networks cannot be read: %s", error)
            return b""

    @property
    def absent_engine(self) -> Path:
        """The file where the engine for kernels without one keeps what it was told."""
        return self._directory / _ABSENT

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
        return self._read(workload_id)

    def all(self) -> Iterator[Record]:
        """Give every record that can be read."""
        for path in sorted(self._directory.glob("*.json")):
            found = self._read(int(path.stem)) if path.stem.isdigit() else None
            if found is not None:
                yield found

    def _read(self, workload_id: int, suffix: str = ".json") -> Record | None:
        try:
            return Record.decode(self._path(workload_id, suffix).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("the record of workload %d cannot be used: %s", workload_id, error)
            return None

    def write_next(self, record: Record) -> None:
        """Write a workload's record under rules that are to come into force. Raises OSError."""
        self._replace(self._path(record.workload_id, _NEXT), record.encode())

    def read_next(self, workload_id: int) -> Record | None:
        """Read what :meth:`write_next` wrote, None when there is nothing that can be read."""
        return self._read(workload_id, _NEXT)

    def promote(self, workload_id: int) -> None:
        """Let the next record take the present one's place. Raises OSError."""
        self._path(workload_id, _NEXT).replace(self._path(workload_id))

    def forget_next(self) -> None:
        """Remove the records of rules that did not come into force."""
        for path in self._directory.glob(f"*{_NEXT}"):
            path.unlink(missing_ok=True)

    def write_link(self, number: int, bundle: bytes, signature: bytes) -> None:
        """Keep a successor, the ``number``-th of its chain; number 0 is the bundle it began with. Raises OSError."""
        directory = self._directory / _CHAIN
        directory.mkdir(mode=0o700, exist_ok=True)
        self._replace(directory / f"{number}.sig", signature)
        self._replace(directory / f"{number}.bundle", bundle)

    def read_chain(self, length: int) -> list[tuple[bytes, bytes]]:
        """Give the first ``length`` successors as (bundle, signature), and remove what lies beyond them.

        Raises OSError when one is missing or the chain is longer or larger than any that was kept.
        """
        found: list[tuple[bytes, bytes]] = []
        size = 0
        if length > MAXIMUM_CHAIN:
            message = f"a chain of {length} successors, expected at most {MAXIMUM_CHAIN}; reboot"
            raise OSError(message)
        for number in range(1, length + 1):
            found.append(self._read_link(number, MAXIMUM_CHAIN_BYTES - size))
            size += sum(map(len, found[-1]))
        self.cut_chain(length)
        return found

    def read_first(self) -> tuple[bytes, bytes]:
        """Give the bundle that the chain began with, and its signature. Raises OSError."""
        return self._read_link(0, MAXIMUM_CHAIN_BYTES)

    def _read_link(self, number: int, limit: int) -> tuple[bytes, bytes]:
        directory = self._directory / _CHAIN
        link: list[bytes] = []
        for suffix in ("bundle", "sig"):
            with (directory / f"{number}.{suffix}").open("rb") as file:
                link.append(file.read(limit + 1))
            limit -= len(link[-1])
            if limit < 0:
                message = f"{directory} holds more than {MAXIMUM_CHAIN_BYTES} bytes, expected less; reboot"
                raise OSError(message)
        return link[0], link[1]

    def cut_chain(self, length: int) -> None:
        """Remove every successor after the first ``length``, and with none left all of the chain. Raises OSError."""
        directory = self._directory / _CHAIN
        for path in directory.iterdir() if directory.exists() else ():
            number = int(path.stem) if path.suffix in (".bundle", ".sig") and path.stem.isdigit() else -1
            if length == 0 or not 0 <= number <= length:
                path.unlink(missing_ok=True)

    def remove(self, workload_id: int) -> None:
        """Remove a record; one that is not there is fine."""
        try:
            self._path(workload_id).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the record of workload %d cannot be removed: %s", workload_id, error)

    def keep_only(self, workload_ids: set[int]) -> None:
        """Remove the records of all other workloads."""
        for path in self._directory.iterdir():
            if path.name in (_RESERVATION, _LOCK, _CHAIN, _NETWORK, _ABSENT):
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

    def _path(self, workload_id: int, suffix: str = ".json") -> Path:
        return self._directory / f"{workload_id}{suffix}"
