"""What the parser of configs complains about, in one line that a person can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..task import TaskSpec

__all__ = ["one_line"]


def one_line(error: Exception, spec: TaskSpec, subcommand: str) -> str:
    """Message for a failed parse."""
    return " ".join(str(error).split())
