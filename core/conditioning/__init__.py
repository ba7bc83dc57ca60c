"""How a condition enters a backbone: as channels, as token groups, as a stream of its own, from a side branch."""

from __future__ import annotations

from .channels import widen_input
from .fixed_text import FixedText
from .key_value_bank import KeyValueBank, swap_halves
from .key_value_cache import KeyValueCache
from .layer_stack import LayerStackDiT
from .positions import Position
from .pretrained_branch import PretrainedSideBranch
from .reference_dit import ReferenceDiT
from .side_branch import SideBranch
from .stream import StreamDiT, stream_on
from .token_group_dit import TokenGroupDiT
from .token_groups import TokenGroup, forward_groups, label_collisions, only_itself, separate

__all__ = [
    "FixedText",
    "KeyValueBank",
    "KeyValueCache",
    "LayerStackDiT",
    "Position",
    "PretrainedSideBranch",
    "ReferenceDiT",
    "SideBranch",
    "StreamDiT",
    "TokenGroup",
    "TokenGroupDiT",
    "forward_groups",
    "label_collisions",
    "only_itself",
    "separate",
    "stream_on",
    "swap_halves",
    "widen_input",
]
