# SPDX-License-Identifier: Apache-2.0
"""The daemon: holds workloads to a sealed policy bundle. Imports ``hauberk``; nothing imports it but its own parts."""
