"""Data: readers of pictures, degradations, training crops and pairs, the open corpus, and built-in samples."""

from __future__ import annotations

__all__: list[str] = []
