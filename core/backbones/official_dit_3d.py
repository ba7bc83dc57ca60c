"""Official layout of DiT-3D (arXiv 2307.01831)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import PolyditError
from .dit_3d import DiT3D
from .official import load_matching
from .official_dit import dit_to_official, renamed_to_native

__all__ = ["dit_3d_from_official", "dit_3d_to_official"]

ARGUMENTS = (
    "input_size",
    "patch_size",
    "in_channels",
    "hidden_size",
    "depth",
    "num_heads",
    "mlp_ratio",
    "class_dropout_prob",
    "num_classes",
    "learn_sigma",
)


def dit_3d_from_official(
    state_dict: dict[str, Tensor],
    window_size: int = 0,
    window_block_indexes: tuple[int, ...] = (),
    use_rel_pos: bool = False,
    rel_pos_zero_init: bool = True,
    **config: Any,
) -> DiT3D:
    """DiT-3D: called as ``model(points, t, y)`` with points (B, 3, N) and t in 0..999; the output is the noise.

    Released checkpoints were trained without windows (the released launcher never switches them on), so that
    ``window_size`` 0 is right for them; with windows the model really attends inside them.
    """
    if use_rel_pos:
        raise PolyditError("dit_3d: use_rel_pos is of no released checkpoint and not supported; leave it out")
    if unknown := sorted(set(config) - set(ARGUMENTS)):
        raise PolyditError(
            f"dit_3d has no argument {unknown[0]!r}; its arguments are {', '.join(ARGUMENTS)}, ..."
        )
    defaults = {"hidden_size": 1152, "depth": 28, "num_heads": 16, "num_classes": 1, "learn_sigma": False}
    model = DiT3D(
        **{
            **defaults,
            **config,
            "window_size": window_size or None,
            "window_blocks": list(window_block_indexes) if window_size else [],
        }
    )
    plain = {name.removeprefix("model.module."): value for name, value in state_dict.items()}
    return load_matching(model, renamed_to_native(plain), "dit_3d")


dit_3d_to_official = dit_to_official
