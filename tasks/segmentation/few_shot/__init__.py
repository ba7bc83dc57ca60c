"""Few-shot segmentation in context (DiffewS): marked pictures say what to segment in other pictures.

No torch is imported here: the task's specification lies in the package above.
"""

from __future__ import annotations

__all__: list[str] = []
