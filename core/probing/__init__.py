"""Feature taps: read, record and replace what a backbone computes, without changing the backbone.

Works on the native DiT and on diffusers transformers alike. A site is a string, see :mod:`.sites`.
"""

from __future__ import annotations

from .sites import Site, find_sites
from .tap import Record, read_features, skip, tap

__all__ = ["Record", "Site", "find_sites", "read_features", "skip", "tap"]
