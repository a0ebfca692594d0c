# SPDX-License-Identifier: Apache-2.0
"""The unit lane: no root, no kernel, no network."""
