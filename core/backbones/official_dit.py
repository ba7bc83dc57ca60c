"""Official layouts of DiT (arXiv 2212.09748), SiT (2401.08740) and LightningDiT (2501.01423)."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..attention.masks import grid_coordinates
from ..errors import PolyditError
from .dit import DiT
from .official import load_matching

__all__ = [
    "dit_from_official",
    "dit_to_official",
    "lightningdit_from_official",
    "lightningdit_to_official",
    "renamed_to_native",
    "sit_from_official",
    "sit_to_official",
]

# official prefix -> ours; the rest of the key is kept
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^x_embedder\.proj\.", "patch_embed.proj."),
    (r"^t_embedder\.mlp\.", "time_embed.mlp."),
    (r"^y_embedder\.embedding_table\.", "label_embed.table."),
    (r"^blocks\.(\d+)\.adaLN_modulation\.1\.", r"blocks.\1.modulation."),
    (r"^blocks\.(\d+)\.mlp\.w12\.", r"blocks.\1.mlp.fc1."),
    (r"^blocks\.(\d+)\.mlp\.w3\.", r"blocks.\1.mlp.fc2."),
    (r"^final_layer\.adaLN_modulation\.1\.", "final_layer.modulation."),
    (r"^final_layer\.norm_final\.", "final_layer.norm."),
)
BACK: tuple[tuple[str, str], ...] = (
    (r"^patch_embed\.proj\.", "x_embedder.proj."),
    (r"^time_embed\.mlp\.", "t_embedder.mlp."),
    (r"^label_embed\.table\.", "y_embedder.embedding_table."),
    (r"^blocks\.(\d+)\.modulation\.", r"blocks.\1.adaLN_modulation.1."),
    (r"^final_layer\.modulation\.", "final_layer.adaLN_modulation.1."),
    (r"^final_layer\.norm\.", "final_layer.norm_final."),
)
SWIGLU_BACK: tuple[tuple[str, str], ...] = (
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"blocks.\1.mlp.w12."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"blocks.\1.mlp.w3."),
)
# The official constructors' defaults.
DEFAULTS = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
}
ROTARY_KEYS = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")


def _rename(state_dict: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state_dict.items():
        new = key
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    return renamed


def renamed_to_native(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the family under our names."""
    return _rename(state_dict, RENAMES)


def _build(
    system: str, state_dict: dict[str, Tensor], options: dict[str, Any], config: dict[str, Any]
) -> DiT:
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise PolyditError(
            f"{system} has no argument {unknown[0]!r}; its arguments are {', '.join(DEFAULTS)}, ..."
        )
    model = DiT(**{**DEFAULTS, **config, **options})
    weights = {k: v for k, v in _rename(state_dict, RENAMES).items() if k not in ROTARY_KEYS}
    load_matching(model, weights, system)
    return model


def dit_from_official(state_dict: dict[str, Tensor], learn_sigma: bool = True, **config: Any) -> DiT:
    """DiT: called as ``model(x, t, y)`` with t in 0..999; the output is [noise | variance]."""
    return _build("dit", state_dict, {"learn_sigma": learn_sigma}, config)


def sit_from_official(state_dict: dict[str, Tensor], learn_sigma: bool = True, **config: Any) -> DiT:
    """SiT: ``model(x, t, y)``, t in [0, 1] unscaled with 0 = noise; the variance half is dropped."""
    return _build("sit", state_dict, {"learn_sigma": learn_sigma, "keep_sigma": False}, config)


def lightningdit_from_official(
    state_dict: dict[str, Tensor],
    learn_sigma: bool = False,
    use_qknorm: bool = False,
    use_swiglu: bool = False,
    use_rope: bool = False,
    use_rmsnorm: bool = False,
    wo_shift: bool = False,
    **config: Any,
) -> DiT:
    """LightningDiT: SiT's call; the rotary positions come on top of the additive ones."""
    config.pop("use_checkpoint", None)  # official switch without effect on the function
    options = {
        "learn_sigma": learn_sigma,
        "keep_sigma": False,
        "norm": "rms" if use_rmsnorm else "layer",
        "mlp": "swiglu" if use_swiglu else "gelu_tanh",
        "position": "sincos+rope" if use_rope else "sincos",
        "qk_norm": ("rms" if use_rmsnorm else "layer") if use_qknorm else None,
        "modulation_shift": not wo_shift,
    }
    return _build("lightningdit", state_dict, options, {"in_channels": 32, **config})


def dit_to_official(model: DiT) -> dict[str, Tensor]:
    """Official names; bit-exact inverse of the loader."""
    rules = BACK + (SWIGLU_BACK if model.config.mlp == "swiglu" else ())
    return _rename(model.state_dict(), rules)


sit_to_official = dit_to_official


def lightningdit_to_official(model: DiT) -> dict[str, Tensor]:
    """Official names, with the rotary tables that the official module keeps as buffers."""
    state_dict = dit_to_official(model)
    if model.rotary is not None:
        # Released tables are of n / side * side, which float32 rounds for some sides (13, 19, 21, ...).
        places = grid_coordinates(model.base_grid)
        sides = places.new_tensor(model.base_grid)
        tables = model.rotary(places.float() / sides * sides)
        state_dict |= dict(zip(ROTARY_KEYS, tables, strict=True))
    return state_dict
