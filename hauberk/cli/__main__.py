# SPDX-License-Identifier: Apache-2.0
"""``python -m hauberk.cli`` is the ``hauberk`` command, also where no script was installed."""

from __future__ import annotations

import sys

from hauberk.cli import main

sys.exit(main())
