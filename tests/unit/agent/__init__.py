# SPDX-License-Identifier: Apache-2.0
"""The agent without a kernel: registry, verification, facts, selection, alerts, and all of it on the simulator."""
