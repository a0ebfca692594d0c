# SPDX-License-Identifier: Apache-2.0
"""Tests below ``guest/`` belong inside a guest: on the host only the tests that boot one are collected."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("HAUBERK_VM") == "1" else ["guest"]
