# SPDX-License-Identifier: Apache-2.0
"""The trust layer: what a machine accepts, and when it stops accepting."""
