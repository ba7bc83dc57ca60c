"""A token group transformer that copies from the garment's picture: what a few patches of 6 x 6 pixels cannot redraw.

Per pixel it says, besides colours, where in the garment's picture its cloth lies, how far to trust the copy from there,
and the light that falls on it, as flow-based try-on does ("ClothFlow", ICCV 2019; "GP-VTON", arXiv 2303.13756). These
maps depend on person and garment alone, not on noise and time: they are the same at every step and computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ...core.backbones.embedding import sincos_positions, unpatchify
from ...core.backbones.variant import extends
from ...core.conditioning import KeyValueCache, TokenGroup, TokenGroupDiT
from ...core.training.checkpoints import read_checkpoint
from ...core.training.weights import find_files, is_on_meta, read_weights, shapes_in

__all__ = [
    "ABSENT",
    "Warp",
    "WarpingTokenGroupDiT",
    "compose",
    "lacks_warp",
    "outline",
    "start_plain",
    "warp_losses",
]

ABSENT = -20.0
"""The trust's logit where there is no garment to copy from."""

PLAIN = set(signature(TokenGroupDiT.__init__).parameters)
COARSE = (12, 9)  # of the small pictures in an outline
OUTLINE = 14 + COARSE[0] * COARSE[1]


class WarpingTokenGroupDiT(TokenGroupDiT):
    """A :class:`TokenGroupDiT` whose colours are mixed with a copy from the garment's picture.

    Its answer is ``colours + trust * (light(garment[places]) - colours)``. At initialisation the trust is exactly 0, so
    that with the weights of a :class:`TokenGroupDiT` it answers what that one does. In pixel space. The condition
    ``person`` is exactly 0 where the person is made anew; without ``person`` or ``garment``, or where the garment is 0
    all over, nothing is copied.

    Args:
        warp_width: Width of the part that finds the places.
        warp_heads: Its attention heads.
        **kwargs: Of :class:`TokenGroupDiT`.
    """

    @extends(TokenGroupDiT)
    @register_to_config
    def __init__(self, warp_width: int = 96, warp_heads: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not {"person", "garment"} <= set(self.type_embed):
            raise ValueError("copies need the conditions person and garment")
        channels = self.config.in_channels
        if len(self.patch_size) != 2 or self.config.learn_sigma or self.prediction_channels != channels:
            raise ValueError("copies need pictures, as many channels out as in, and no learned variance")
        self.warp = Warp(channels, self.patch_size, warp_width, warp_heads)
        self._maps: tuple[Tensor, Tensor] | None = None  # of the call that is under way, and its garment

    @contextmanager
    def showing(self, conditions: Mapping[str, Tensor], cache: KeyValueCache | None = None) -> Iterator[None]:
        """While the context lasts, answers are mixed with copies and four channels longer, see :func:`compose`.

        Args:
            conditions: (B, C, H, W) by name.
            cache: State of one sampling run, in which the maps are kept, too.
        """
        if "person" in conditions and "garment" in conditions:
            person, garment = conditions["person"], conditions["garment"]
            self._maps = self.maps(person, garment, cache), garment
        try:
            yield
        finally:
            self._maps = None

    def maps(self, person: Tensor, garment: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, 4, H, W) of :class:`Warp`, run once in a sampling run."""
        if cache is None:
            return self.warp(person, garment)
        both = TokenGroup("warp of the garment", tokens=torch.cat([person, garment], 2))
        entry = cache.get(self, both, ())
        if entry is None:
            places, rest = self.warp(person, garment).split(2, 1)
            entry = cache.put(self, both, (), [(places, rest)])
        return torch.cat(entry[0], 1)

    def head(self, hidden_states: Tensor, conditioning: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, N, D) -> (B, C, H, W); while a garment is shown (B, C + 4, H, W), see :func:`compose`."""
        colours = super().head(hidden_states, conditioning, grid)
        if self._maps is None:
            return colours
        maps, garment = self._maps
        return compose(colours, garment, maps)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        cache: KeyValueCache | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the target, (B, C, H, W); the arguments are those of :class:`TokenGroupDiT`."""
        with self.showing(conditions or {}, cache):
            (sample,) = super().forward(
                hidden_states,
                timestep,
                class_labels,
                conditions,
                encoder_hidden_states,
                encoder_attention_mask,
                pooled_projections,
                cache,
                return_dict=False,
            )
        sample = sample[:, : self.prediction_channels]
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class Warp(nn.Module):
    """From the masked person and the garment to a map of four values for each pixel.

    Outlines of mask and garment say at once roughly how the one lies over the other: an affine map of the whole
    picture. Tokens of the person, which look at one another and at the garment's, correct it, each by an affine map of
    its own; these blend from token to token, so that what is copied stays smooth. What would be copied then corrects
    trust and light by the pixel: the ground beside a flat garment is no cloth.

    Args:
        channels: Of the pictures.
        patch_size: Height and width of a patch.
        width: Of the tokens.
        heads: Of attention.
    """

    def __init__(self, channels: int, patch_size: tuple[int, ...], width: int, heads: int) -> None:
        super().__init__()
        self.patch_size, self.width = patch_size, width
        self.person_in = nn.Conv2d(channels + 1, width, patch_size, patch_size)
        self.garment_in = nn.Conv2d(channels + 1, width, patch_size, patch_size)
        self.outlines = nn.Sequential(
            nn.Linear(2 * OUTLINE, 2 * width), nn.GELU(), nn.Linear(2 * width, 2 * width), nn.GELU()
        )
        self.outlines_in = nn.Linear(2 * width, width)
        self.among, self.find, self.again, self.refine = (Look(width, heads) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.whole_affine, self.affine = nn.Linear(2 * width, 6), nn.Linear(width, 6)
        self.mixing = nn.Linear(width, patch_size[0] * patch_size[1] * 2)
        self.edges = nn.Sequential(
            nn.Conv2d(channels + 3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 2, 3, padding=1)
        )
        for layer in (self.whole_affine, self.affine, self.mixing, self.edges[-1]):
            nn.init.zeros_(layer.weight)  # at first from the same place, with no trust and no change of light
            nn.init.zeros_(layer.bias)

    def forward(self, person: Tensor, garment: Tensor) -> Tensor:
        """Where to copy from.

        Args:
            person: (B, C, H, W) in [-1, 1], exactly 0 where it is made anew.
            garment: (B, C, h, w) in [-1, 1].

        Returns:
            (B, 4, H, W) float32: offsets of column and row, the trust's logit, the light's logarithm.
        """
        anew = (person == 0).all(1, keepdim=True).to(person)
        cloth = unlike_ground(garment)
        summary = self.outlines(torch.cat([outline(anew), outline(cloth)], 1).to(person))  # (B, 2 width)
        wearer, flat = (
            self.person_in(torch.cat([person, anew], 1)),
            self.garment_in(torch.cat([garment, cloth.to(garment)], 1)),
        )
        grid = wearer.shape[-2:]
        x = wearer.flatten(2).transpose(1, 2) + self.positions(grid).to(wearer)
        source = flat.flatten(2).transpose(1, 2) + self.positions(flat.shape[-2:]).to(flat)
        x = x + self.outlines_in(summary)[:, None]
        x = self.find(self.among(x, x), source)
        x = self.norm(self.refine(self.again(x, x), source))
        # The eight bits of bfloat16 are a quarter of a pixel.
        with torch.autocast(x.device.type, enabled=False):
            whole, own, mixing = (
                F.linear(values.float(), layer.weight.float(), layer.bias.float())
                for values, layer in ((summary, self.whole_affine), (x, self.affine), (x, self.mixing))
            )
        affine = (own + whole[:, None]).transpose(1, 2).unflatten(2, grid)  # (B, 6, h, w)
        mixing = unpatchify(mixing, grid, self.patch_size)
        affine = F.interpolate(affine, mixing.shape[-2:], mode="bilinear")
        column, row = own_places(mixing)
        offsets = affine[:, :2] * column + affine[:, 2:4] * row + affine[:, 4:]
        copied = sample(torch.cat([garment, cloth.to(garment)], 1), own_places(mixing) + offsets.detach())
        mixing = mixing + self.edges(torch.cat([copied, mixing], 1).to(person)).float()
        return torch.cat([offsets, mixing], 1)

    def positions(self, grid: Sequence[int]) -> Tensor:
        """(N, width) of a grid's tokens."""
        rows, columns = (torch.arange(side, dtype=torch.float64, device="cpu") for side in grid)
        ids = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        return sincos_positions(ids, self.width)


class Look(nn.Module):
    """Attention to tokens, then an MLP; both added to what was there.

    Args:
        width: Of the tokens.
        heads: Of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.source_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(B, N, width) at (B, M, width)."""
        query = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pairs = self.key_value(self.source_norm(source)).unflatten(-1, (2, self.heads, -1))
        key, value = pairs.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


def unlike_ground(garment: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W) float32 in [0, 1]: how far pixels differ from the picture's corners."""
    side = max(1, garment.shape[-2] // 32)
    ends = torch.cat([garment[..., :side, :], garment[..., -side:, :]], -2).float()
    ground = torch.cat([ends[..., :side], ends[..., -side:]], -1).mean((-2, -1), keepdim=True)
    return ((garment.float() - ground).abs().amax(1, keepdim=True) * 4).clamp(max=1)


def outline(shape: Tensor) -> Tensor:
    """What a shape is like as a whole: its middle, extent, slant, area and ends, and a small picture of it.

    Args:
        shape: (B, 1, H, W) in [0, 1].

    Returns:
        (B, OUTLINE) float32; places count from -2 to 2 across the picture.
    """
    shape = shape[:, 0].float()
    column, row = own_places(shape)
    column, row = column[0], row[:, 0]
    area = shape.sum((1, 2)).clamp(min=1)
    across, down = shape.sum(1) / area[:, None], shape.sum(2) / area[:, None]  # (B, W), (B, H), each of sum 1
    middle_x, middle_y = (across * column).sum(1), (down * row).sum(1)
    dx, dy = column - middle_x[:, None], row - middle_y[:, None]
    extent_x, extent_y = (across * dx**2).sum(1).sqrt(), (down * dy**2).sum(1).sqrt()
    slant = (shape * dy[:, :, None] * dx[:, None, :]).sum((1, 2)) / area
    ends = [
        torch.where(share.cumsum(1) > quantile, axis, axis.new_ones(())).amin(1)
        for share, axis in ((down, row), (across, column))
        for quantile in (0.01, 0.1, 0.9, 0.99)
    ]
    share = 4 * area / (shape.shape[1] * shape.shape[2])
    figures = [middle_y, middle_x, 2 * extent_y, 2 * extent_x, 10 * slant, share, *ends]
    small = F.adaptive_avg_pool2d(shape[:, None], COARSE).flatten(1)
    return torch.cat([2 * torch.stack(figures, 1), small], 1)


def own_places(like: Tensor) -> Tensor:
    """(2, H, W) float32: column and row of the pixels of a picture (..., H, W), from -1 to 1 from edge to edge."""
    row, column = (
        (torch.arange(side, device=like.device) + 0.5) * (2 / side) - 1 for side in like.shape[-2:]
    )
    return torch.stack(torch.meshgrid(row, column, indexing="ij")[::-1])


def compose(colours: Tensor, garment: Tensor, maps: Tensor) -> Tensor:
    """Mix colours with what is copied from the garment.

    Args:
        colours: (B, C, H, W) in [-1, 1].
        garment: (B, C, h, w) in [-1, 1]; zeros where there is none.
        maps: (B, 4, H, W) of :class:`Warp`.

    Returns:
        (B, C + 4, H, W): the mixture; the places that were copied from, column and row in [-1, 1] from edge to edge;
        the trust's logit, :data:`ABSENT` where there is no garment; the light's logarithm.
    """
    absent = (garment == 0).flatten(1).all(1).view(-1, 1, 1, 1)
    places = places_of(maps)
    maps = torch.cat([places, maps[:, 2:3].masked_fill(absent, ABSENT), maps[:, 3:]], 1)
    copied = copied_with(sample(garment, places), maps)
    return torch.cat([colours + trust_of(maps) * (copied - colours), maps], 1)


def places_of(maps: Tensor) -> Tensor:
    """(B, 2, H, W): where the maps of :class:`Warp` copy from, column and row in [-1, 1] from edge to edge."""
    return own_places(maps) + maps[:, :2]


def trust_of(maps: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1): how much of a copy is taken, of the third of four channels.

    What is more likely not cloth is not copied at all: exactly so at first, and wherever no garment is.
    """
    return (maps[:, 2:3] / 2).tanh().clamp(min=0)


def copied_with(picture: Tensor, maps: Tensor) -> Tensor:
    """What was copied, in the light of the last of four channels."""
    return lit(picture, maps[:, 3:])


def sample(garment: Tensor, places: Tensor) -> Tensor:
    """(B, C, h, w) at (B, 2, H, W), bilinear; beyond the edge the edge."""
    return F.grid_sample(
        garment.float(), places.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )


def lit(picture: Tensor, light: Tensor) -> Tensor:
    """A picture in [-1, 1] under light, whose logarithm (B, 1, H, W) counts up to 2 either way."""
    return (picture + 1) * light.clamp(-2, 2).exp() - 1


def warp_losses(copies: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What places, trust and light err by, over the samples that have a garment.

    Args:
        copies: (B, 4, H, W), the last channels of :func:`compose`.
        batch: With ``flow`` and ``flow_known``, see :mod:`.data`.

    Returns:
        ``flow``: mean distance of the places along both axes, in pixels of a picture of this size, over what is known;
        ``trust``: mean cross-entropy of the trust with what is known, inside the mask; ``light``: mean distance of the
        colours at the true places, in this light, from the person's, over what is known.
    """
    copies = copies.float()
    places, logit, light = copies[:, :2], copies[:, 2:3], copies[:, 3:]
    flow, known = batch["flow"], batch["flow_known"]
    there = (logit != ABSENT).float()
    sides = flow.new_tensor(flow.shape[:1:-1]).view(1, 2, 1, 1)  # width for columns, height for rows
    error = {
        "flow": ((places - flow).abs() * sides / 2).sum(1, keepdim=True),
        "trust": F.binary_cross_entropy_with_logits(logit, known, reduction="none"),
        "light": (lit(sample(batch["garment"], flow), light) - batch["person"]).abs().mean(1, keepdim=True),
    }
    where = {"flow": known * there, "trust": batch["mask"] * there, "light": known * there}
    return {name: (error[name] * at).sum() / at.sum().clamp(min=1) for name, at in where.items()}


def lacks_warp(source: str, model: nn.Module) -> bool:
    """Whether weights are those of a :class:`TokenGroupDiT`, for a model that has a :class:`Warp` besides.

    Args:
        source: Folder, safetensors file or checkpoint, as ``--model.init_weights`` takes them.
        model: What they are for.

    Raises:
        PolyditError: they are missing or unreadable.
    """
    if not isinstance(model, WarpingTokenGroupDiT):
        return False
    if source.endswith(".ckpt"):
        names = {name.removeprefix("backbone.") for name in read_checkpoint(source)["state_dict"]}
    else:
        names = {name for file in find_files(source) for name in shapes_in(file)}
    return not any(name.startswith("warp.") for name in names)


def start_plain(source: str, model: WarpingTokenGroupDiT) -> None:
    """Give a model the weights of a :class:`TokenGroupDiT`; its :class:`Warp` stays as it is.

    Raises:
        PolyditError: they are of other settings, or not finite.
    """
    with torch.device("meta"):
        plain = TokenGroupDiT(**{name: value for name, value in model.config.items() if name in PLAIN})
    state = read_weights(source, plain)
    if not is_on_meta(model):
        model.load_state_dict(state, strict=False)
