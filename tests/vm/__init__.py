# SPDX-License-Identifier: Apache-2.0
"""The VM lane: what only a real kernel can show. The tests boot guests; ``vm/guest`` holds what runs inside them."""
