"""The published sizes, each number once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .dit import DiT

__all__ = ["SIZES", "Size", "make_dit"]


@dataclass(frozen=True)
class Size:
    """Depth, width and heads of a named size."""

    depth: int
    hidden_size: int
    num_heads: int


SIZES: dict[str, Size] = {
    # DiT, arXiv 2212.09748, table 1
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
    # LightningDiT, arXiv 2501.01423
    "1p0B": Size(24, 1536, 24),
    "1p6B": Size(28, 1792, 28),
}

# What the published families have in common beside the size.
FAMILIES: dict[str, dict[str, Any]] = {
    "DiT": {"input_size": 32, "in_channels": 4, "num_classes": 1000, "learn_sigma": True},
    "SiT": {
        "input_size": 32,
        "in_channels": 4,
        "num_classes": 1000,
        "learn_sigma": True,
        "keep_sigma": False,
    },
    "LightningDiT": {
        "input_size": 16,
        "in_channels": 32,
        "num_classes": 1000,
        "norm": "rms",
        "mlp": "swiglu",
        "position": "sincos+rope",
    },
}


def make_dit(name: str, **overrides: Any) -> DiT:
    """Build a published configuration by its name, such as ``"DiT-XL/2"`` or ``"LightningDiT-XL/1"``.

    Args:
        name: family, size and patch.
        **overrides: any argument of :class:`DiT`.

    Raises:
        ValueError: for a name that is not known; the message lists what is.
    """
    family, _, rest = name.partition("-")
    size, _, patch = rest.partition("/")
    if family not in FAMILIES or size not in SIZES or not patch.isdigit():
        raise ValueError(
            f"no model named {name!r}; it is FAMILY-SIZE/PATCH with FAMILY in {list(FAMILIES)} "
            f"and SIZE in {list(SIZES)}"
        )
    return DiT(**{"patch_size": int(patch), **asdict(SIZES[size]), **FAMILIES[family], **overrides})
