"""The attention product of a module as a place that can be computed otherwise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import PolyditError
from .blocks import find_blocks
from .estimators import Taylor
from .policy import Policy
from .sites import ATTENTION, CacheSite, Unbind, bind, branch_sites

__all__ = ["AttentionPolicy", "AttentionSite"]


class AttentionPolicy(Policy):
    """A method that computes the self-attention of every block otherwise, but not on full steps."""

    @abstractmethod
    def site(self, name: str, module: nn.Module) -> AttentionSite:
        """What stands at one attention."""

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """The self-attentions of the blocks; of a joint block, the one of both streams."""
        found: list[CacheSite] = []
        for candidate in branch_sites(find_blocks(model), Taylor()):
            name = candidate.name
            module = model.get_submodule(name.removesuffix(".proj_out"))
            if name.endswith(".proj_out"):
                name, module = f"{name.removesuffix('.proj_out')}.attn", module.get_submodule("attn")
            if name.rsplit(".", 1)[-1] in ATTENTION:
                found.append(self.site(name, module))
        if not found:
            raise PolyditError(f"{self}: no self-attention found in the blocks of {type(model).__name__}")
        return found


class AttentionSite(CacheSite):
    """Sees the fused product ``scaled_dot_product_attention`` that a module makes, and may replace it.

    Products whose queries and keys are of unlike number (attention to a text) are left alone.

    Args:
        name: of the module, for messages.
        module: whose product it is.
        kept: what the site keeps for each branch, to be forgotten and counted.
    """

    def __init__(self, name: str, module: nn.Module, *kept: dict[int, Tensor]) -> None:
        super().__init__(name, Taylor())
        self.module, self.kept = module, kept
        self._branch = 0
        self._asked = False

    @abstractmethod
    def product(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, fused: Callable[[], Tensor]
    ) -> Tensor:
        """(B, H, N, d) each; what stands for their attention, which ``fused`` computes in full."""

    def enter(self, step: int, branch: int, compute: bool | None, learn: bool = True) -> None:
        """As any site."""
        self._branch = branch
        super().enter(step, branch, compute, learn)

    def forget(self, branch: int | None = None) -> None:
        """As any site, and what is kept."""
        super().forget(branch)
        for kept in self.kept:
            if branch is None:
                kept.clear()
            else:
                kept.pop(branch, None)

    @property
    def bytes(self) -> int:
        """Of what is kept."""
        return sum(tensor.numel() * tensor.element_size() for kept in self.kept for tensor in kept.values())

    def attach(self) -> list[Unbind]:
        """Bind; what undoes it."""
        inner = self.module.forward
        mode = _Product(self)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return inner(*args, **kwargs)
            self._count()
            self._asked = False
            with mode:
                out = inner(*args, **kwargs)
            if not self._asked:
                raise PolyditError(
                    f"sparse attention at {self.name}: it makes no fused softmax product (linear or windowed "
                    "attention), so there is nothing to make sparse"
                )
            return out

        return [bind(self.module, "forward", forward)]

    def replace(self, function: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        """The product of one call of the fused function."""
        query, key = call["query"], call["key"]
        if query.shape[2] != key.shape[2]:
            return function(**call)
        if call.get("attn_mask") is not None or call.get("is_causal") or query.shape[1] != key.shape[1]:
            raise PolyditError(
                f"sparse attention at {self.name}: it has a mask of its own; take another method"
            )
        self._asked = True
        return self.product(query, key, call["value"], call.get("scale"), lambda: function(**call))


class _Product(TorchFunctionMode):
    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.site = site

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        return self.site.replace(func, dict(zip(names, args, strict=False)) | (kwargs or {}))
