# SPDX-License-Identifier: Apache-2.0
"""Why an installation was refused. Nothing had been changed when one of these is raised before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hauberk.errors import HauberkError

if TYPE_CHECKING:
    from collections.abc import Iterable


class InstallError(HauberkError):
    """The installation, as asked for, cannot be made or taken back; the message says what to do."""


class MachineError(InstallError):
    """The machine or the tree below ``--root`` lacks something, or may not be written."""

    exit_code = 3


class ObstaclesError(InstallError):
    """Something is in the way. ``obstacles`` holds one sentence for each, all found before anything was changed."""

    def __init__(self, obstacles: Iterable[str]) -> None:
        """Take the sentences; the error's text is one line for each."""
        self.obstacles = tuple(obstacles)
        super().__init__("nothing was changed:\n" + "\n".join(f"  {obstacle}" for obstacle in self.obstacles))
