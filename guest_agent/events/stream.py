# SPDX-License-Identifier: Apache-2.0
"""Where alerts go: a ring of the last ones, subscribers, and a file. Nothing here can hold up a decision.

Everything is bounded. A subscriber that does not keep up loses alerts, which are counted for it; the ring forgets the
oldest; a file that cannot be written costs counted alerts and a log line. Enforcement is in the kernel and waits for
none of them.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from guest_agent.events.alerts import Alert

logger = logging.getLogger(__name__)

KEPT_ALERTS: Final = 1000
QUEUED_ALERTS: Final = 1000
MAXIMUM_SUBSCRIBERS: Final = 16


class TooManySubscribersError(Exception):
    """All places for readers of the alert stream are taken; try again when one has left."""


class Subscription:
    """One reader's bounded queue. ``dropped`` counts what did not fit."""

    def __init__(self, size: int, leave: Callable[[Subscription], None]) -> None:
        """Make a queue for ``size`` alerts; ``leave`` is called by :meth:`close`."""
        self._queue: queue.Queue[Alert | None] = queue.Queue(size + 1)  # one place is kept for the end
        self._size = size
        self._leave = leave
        self.dropped = 0

    def offer(self, alert: Alert) -> None:
        """Put an alert in the queue, or count it as dropped."""
        if self._queue.qsize() >= self._size:
            self.dropped += 1
            return
        self._queue.put_nowait(alert)

    def end(self) -> None:
        """Tell the reader that no more will come."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._queue.get_nowait()
            self.dropped += 1
            self._queue.put_nowait(None)

    def take(self, timeout: float) -> Alert | None:
        """Wait for the next alert for at most ``timeout`` seconds.

        Returns None at the end of the stream. Raises queue.Empty when nothing came.
        """
        return self._queue.get(timeout=timeout)

    def close(self) -> None:
        """Leave the stream."""
        self._leave(self)


class AlertStream:
    """Takes alerts from one producer and hands them to everybody who reads."""

    def __init__(self, kept: int = KEPT_ALERTS, queued: int = QUEUED_ALERTS) -> None:
        """Keep the last ``kept`` alerts; give each subscriber a queue of ``queued``."""
        self._ring: deque[Alert] = deque(maxlen=kept)
        self._queued = queued
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._ended = False
        self.published = 0
        self.dropped = 0  # by subscribers that have left

    def publish(self, alert: Alert) -> None:
        """Hand an alert to the ring and to every subscriber; never blocks."""
        with self._lock:
            self.published += 1
            self._ring.append(alert)
            for subscription in self._subscriptions:
                subscription.offer(alert)

    def recent(self) -> list[Alert]:
        """Give the alerts in the ring, oldest first."""
        with self._lock:
            return list(self._ring)

    def subscribe(self) -> tuple[list[Alert], Subscription]:
        """Give the alerts so far and a subscription for those to come, without a gap or an overlap.

        Raises TooManySubscribersError when 16 readers are there already.
        """
        with self._lock:
            if len(self._subscriptions) >= MAXIMUM_SUBSCRIBERS:
                message = f"{MAXIMUM_SUBSCRIBERS} readers follow the alerts already, expected fewer; end one of them"
                raise TooManySubscribersError(message)
            subscription = Subscription(self._queued, self._leave)
            if self._ended:
                subscription.end()
            self._subscriptions.append(subscription)
            return list(self._ring), subscription

    def end(self) -> None:
        """Tell every reader that no more alerts will come."""
        with self._lock:
            self._ended = True
            for subscription in self._subscriptions:
                subscription.end()

    def statistics(self) -> dict[str, int]:
        """Count alerts published, and those that slow readers lost."""
        with self._lock:
            waiting = sum(subscription.dropped for subscription in self._subscriptions)
            return {
                "alerts": self.published,
                "alerts_dropped": self.dropped + waiting,
                "alert_readers": len(self._subscriptions),
            }

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
                self.dropped += subscription.dropped


class FileSink:
    """Appends alerts to a file, one JSON object a line. A file moved away (log rotation) is opened anew."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending, mode 0600, following no link. Raises OSError."""
        self._path = path
        self._file: int | None = self._open()
        self._failing = False
        self.lost = 0

    def write(self, alert: Alert) -> None:
        """Append one alert; what cannot be written is counted and logged once per streak."""
        line = json.dumps(alert, separators=(",", ":"), ensure_ascii=False) + "\n"
        data = line.encode("utf-8", "backslashreplace")
        try:
            if os.write(self._opened(), data) != len(data):
                message = "the disk is full"
                raise OSError(message)  # noqa: TRY301 - counted below like any other failure to write
        except OSError as error:
            if not self._failing:
                logger.warning("alerts cannot be written to %s: %s", self._path, error)
            self._failing = True
            self.lost += 1
        else:
            self._failing = False

    def close(self) -> None:
        """Close the file; closing it again is harmless."""
        opened, self._file = self._file, None
        if opened is not None:
            os.close(opened)

    def _opened(self) -> int:
        """Give the descriptor of the file that bears the name now.

        A descriptor is never kept after it was closed: its number soon belongs to something else.
        """
        if self._file is None or self._moved(self._file):
            self.close()
            self._file = self._open()
        return self._file

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)

    def _moved(self, descriptor: int) -> bool:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return True
        opened = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino)
