"""How a condition enters a backbone: as channels, as token groups, as a stream of its own, from a side branch."""

from __future__ import annotations

from .channels import widen_input
from .fixed_text import FixedText
from .key_value_cache import KeyValueCache
from .positions import Position
from .pretrained_branch import PretrainedSideBranch
from .side_branch import SideBranch
from .stream import StreamDiT, stream_on
from .token_group_dit import TokenGroupDiT
from .token_groups import TokenGroup, forward_groups, label_collisions, only_itself, separate

__all__ = [
    "FixedText",
    "KeyValueCache",
    "Position",
    "PretrainedSideBranch",
    "SideBranch",
    "StreamDiT",
    "TokenGroup",
    "TokenGroupDiT",
    "forward_groups",
    "label_collisions",
    "only_itself",
    "separate",
    "stream_on",
    "widen_input",
]
