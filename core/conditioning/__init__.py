"""How a condition enters a backbone: as channels, as token groups, as a stream of its own."""

from __future__ import annotations

from .channels import widen_input
from .stream import StreamDiT

__all__ = ["StreamDiT", "widen_input"]
