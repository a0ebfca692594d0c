# SPDX-License-Identifier: Apache-2.0
"""Policies: documents -> models -> rules in one normal form -> decisions.

Import the submodule that is needed: ``rules`` (the normal form and precedence), ``globs`` and ``peers`` (matching of
paths and packets), ``exemptions`` (packets that no policy is about), ``coverage`` (what engines hold); ``documents``
and ``models`` (reading YAML, with located errors), ``vocabulary``, ``traffic`` and ``labels`` (the words and texts
that documents hold), ``schema`` (the same for editors), ``normalise`` with ``packets``, ``cilium`` and ``kubernetes``
(rules out of documents), ``collection`` and ``cache`` (many of them, read once), ``selectors`` (which policies a
workload gets), ``resolution`` (what paths lead to in a root file system); ``explain``, ``objects`` and ``answers``
(what would happen if), ``difference`` (what changes). YAML and pydantic are imported only when a document is read.
"""
