# SPDX-License-Identifier: Apache-2.0
"""Putting Hauberk in a container runtime's way, and taking it out again.

A target (``podman``, ``containerd``, …) says as data what should be there; one engine compares that with the tree below
``--root``, does it or only tells it, and keeps an exact record. So ``--dry-run`` prints the very steps that would be
done, ``--check`` asks the same plan, and uninstalling needs no knowledge of any target.

Nothing here starts or stops anything. What is put there comes from ``deploy/`` and ``hooks/`` alone.
"""
