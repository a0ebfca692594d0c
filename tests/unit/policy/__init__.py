# SPDX-License-Identifier: Apache-2.0
"""Tests of ``hauberk.policy`` and ``hauberk policy``; no root, no kernel."""
