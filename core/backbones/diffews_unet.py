"""DiffewS on Stable Diffusion: a second input convolution, for a picture with its mask.

"Unleashing the Potential of the Diffusion Model in Few-shot Semantic Segmentation" (NeurIPS 2024). For training, and on
any network, ``polydit.core.conditioning.KeyValueBank`` carries what the query sees of its supports; the released code's
own calls, with ``is_target`` and ``clear_attn_bank``, are here too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import Attention, BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from ..errors import PolyditError
from .embedding import widened
from .official import load_matching
from .sd_unet import SD21, build_from_official, part_arguments, start_from
from .variant import extends

__all__ = ["BankAttention", "DiffewsUNet", "diffews_from_official", "diffews_to_official"]

Hook = Callable[[nn.Module, Any, dict[str, Any]], Any]


class _InputConv(nn.Conv2d):
    """The input convolution, which hands an input of other channels to another one."""

    reference: tuple[nn.Conv2d, ...] = ()  # in a tuple it is no child: its names are those of the network

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), or (B, 2 C, h, w) -> (B, width, h, w)."""
        return super().forward(x) if x.shape[1] == self.in_channels else self.reference[0](x)


class SupportBank:
    """What one self-attention saw of the supports: its input, from which keys and values follow token by token."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def seen_by(self, hidden_states: Tensor) -> Tensor:
        """What queries (B, N, D) look at: themselves, then their supports, (B, N + shots * M, D).

        Raises:
            PolyditError: the supports are not as many for each query.
        """
        batch = len(hidden_states)
        for support in self.kept:
            if len(support) % batch:
                raise PolyditError(
                    f"the bank holds {len(support)} supports, which is not as many for each of {batch} queries; "
                    "empty it and show the right ones"
                )
        # The shots of one query lie next to each other.
        rows = [support.unflatten(0, (batch, -1)).flatten(1, 2) for support in self.kept]
        return torch.cat([hidden_states, *rows], dim=1)


class BankAttention(Attention):
    """The released code's self-attention by itself: it keeps supports, and shows them to what is no support."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bank = SupportBank()

    def forward(self, hidden_states: Tensor, *args: Any, is_target: bool = True, **kwargs: Any) -> Tensor:
        """A support (B * shots, M, D) with ``is_target=False``, or a query (B, N, D), to its shape."""
        if not is_target:
            self.bank.kept.append(hidden_states)
        seen = self.bank.seen_by(hidden_states) if is_target else None
        answer: Tensor = super().forward(hidden_states, seen, *args, **kwargs)
        return answer

    def clear_bank(self) -> None:
        """Forget the supports."""
        self.bank.kept.clear()


class DiffewsUNet(UNet2DConditionModel):
    """Stable Diffusion's UNet that also reads a picture with its mask, as twice the channels.

    Latents (B, C, h, w) are a query, (B, 2 C, h, w) a support: the picture's latents, then the mask's. Everything but
    the first convolution is shared, and called as in diffusers. With ``is_target=False`` supports are also kept, until
    :meth:`clear_attn_bank`, and shown to the queries that follow; nothing is kept otherwise.

    Args:
        **kwargs: of ``UNet2DConditionModel``.
    """

    @extends(UNet2DConditionModel)
    @register_to_config
    def __init__(self, in_channels: int = 4, **kwargs: Any) -> None:
        super().__init__(in_channels=in_channels, **kwargs)
        plain: nn.Conv2d = self.conv_in
        shape: dict[str, Any] = {"kernel_size": plain.kernel_size, "padding": plain.padding}
        self.conv_in_ref = nn.Conv2d(2 * in_channels, plain.out_channels, **shape)
        own = _InputConv(in_channels, plain.out_channels, **shape)
        own.reference = (self.conv_in_ref,)
        self.conv_in: _InputConv = own
        self.reset_reference()
        self._banks: list[SupportBank] = []

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        *args: Any,
        is_target: bool = True,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """As in diffusers; keeps what self-attentions see of a support, or shows it to a query.

        Args:
            sample: query (B, C, h, w), or supports (B * shots, 2 C, h, w), those of one query next to each other.
            timestep: one, or of each sample.
            encoder_hidden_states: text, of each sample.
            *args: of ``UNet2DConditionModel.forward``.
            is_target: False keeps this pass in the bank, beside what is there.
            **kwargs: of ``UNet2DConditionModel.forward``.

        Raises:
            PolyditError: the bank does not fit the queries, or gradients are wanted with checkpointing.
        """
        if is_target and not self._banks:
            return super().forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
        if self.is_gradient_checkpointing and torch.is_grad_enabled():
            raise PolyditError(
                "is_target and gradient checkpointing do not go together; train with "
                "polydit.core.conditioning.KeyValueBank, which knows of it"
            )
        blocks = [module for module in self.modules() if isinstance(module, BasicTransformerBlock)]
        banks = self._banks or [SupportBank() for _ in blocks]
        with ExitStack() as stack:
            for block, bank in zip(blocks, banks, strict=True):
                hook = _showing(bank) if is_target else _keeping(bank)
                handle = block.attn1.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            answer = super().forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
        self._banks = banks
        return answer

    def clear_attn_bank(self) -> None:
        """Forget the supports."""
        self._banks = []

    def reset_reference(self) -> None:
        """Start the second convolution as two copies of the first, halved."""
        with torch.no_grad():
            self.conv_in_ref.weight.copy_(widened(self.conv_in.weight, 2 * self.config.in_channels))
            self.conv_in_ref.bias.copy_(self.conv_in.bias)

    @classmethod
    def from_folder(cls, source: str | None = None) -> DiffewsUNet:
        """Start training from Stable Diffusion 2.1; see :func:`start_from`.

        Args:
            source: folder of a Stable Diffusion pipeline in diffusers format, or of its UNet.

        Raises:
            PolyditError: there is no such UNet.
        """
        model, pretrained = start_from(cls, source, {}, SD21)
        if pretrained is not None:
            model.reset_reference()
        return model


def _keeping(bank: SupportBank) -> Hook:
    def keep(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        bank.kept.append(args[0])

    return keep


def _showing(bank: SupportBank) -> Hook:
    def show(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": bank.seen_by(args[0])}

    return show


def diffews_from_official(state_dict: dict[str, Tensor], **config: Any) -> DiffewsUNet | BankAttention:
    """The model of the released ``unet`` folder, or one of its self-attentions where ``query_dim`` is given.

    Args:
        state_dict: its tensors; those of the network are 865,934,084.
        **config: arguments of ``UNet2DConditionModel``; or of an attention: ``query_dim``, ``heads``, ``dim_head``,
            ``bias``. Its ``shots`` and ``batch`` follow from what it is called with.

    Raises:
        PolyditError: unknown arguments, or names or shapes that do not fit.
    """
    if "query_dim" in config:
        needed = ("query_dim", "heads", "dim_head")
        given = part_arguments("diffews", config, needed, ("bias", "shots", "batch"))
        attention = BankAttention(**dict(zip(needed, given, strict=False)), bias=bool(given[3]))
        return load_matching(attention, state_dict, "diffews")
    return build_from_official("diffews", DiffewsUNet, state_dict, config)


def diffews_to_official(model: DiffewsUNet | BankAttention) -> dict[str, Tensor]:
    """Official names, which are ours."""
    return dict(model.state_dict())
