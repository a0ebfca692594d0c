# SPDX-License-Identifier: Apache-2.0
"""Installation into trees of the tests' own."""
