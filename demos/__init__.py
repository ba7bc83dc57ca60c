"""Web demos: one page per task, a gallery over all of them, and the small weights and sample pictures they use."""

from __future__ import annotations

__all__: list[str] = []
