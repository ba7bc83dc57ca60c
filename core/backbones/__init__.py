"""What denoises: DiT and its relatives, and the door through which published checkpoints enter."""

from __future__ import annotations

from .dit import DiT, DiTBlock
from .official import load_official, read_official_file, save_official
from .sizes import SIZES, make_dit

__all__ = ["SIZES", "DiT", "DiTBlock", "load_official", "make_dit", "read_official_file", "save_official"]
