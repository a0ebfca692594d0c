# SPDX-License-Identifier: Apache-2.0
"""What is shipped, and what importing it costs."""
