"""FSDP2 (``--trainer.strategy fsdp2``): every process holds a part of each weight, gradient and moment.

A checkpoint holds whole tensors in the layout of every other strategy, so that a run may go on with any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..errors import PolyditError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from .module import DiffusionModule

__all__ = ["FSDP2", "gathered", "is_sharded", "local", "placed_like", "shard", "whole"]


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are spread over processes."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which this process may hold a part; all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process' part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, spread like another one of its shape; all processes have to ask."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def gathered(tree: Any, keep: bool) -> Any:
    """Containers with whole tensors on the CPU where they held parts; all processes have to ask.

    Args:
        tree: Nested dictionaries and lists.
        keep: False drops the tensors once they were whole, for processes that only help.
    """
    if isinstance(tree, DTensor):
        value = tree.full_tensor()
        return value.cpu() if keep else None
    if isinstance(tree, Mapping):
        found = {key: gathered(value, keep) for key, value in tree.items()}
        return {key: value for key, value in found.items() if value is not None or tree[key] is None}
    if isinstance(tree, list | tuple):
        return type(tree)(gathered(value, keep) for value in tree)
    return tree


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a module over a mesh, its repeated blocks one by one, so that only one of them is whole at a time."""
    repeated = set(getattr(module, "_repeated_blocks", None) or ())
    for child in module.modules():
        if type(child).__name__ in repeated:
            fully_shard(child, mesh=mesh)
    fully_shard(module, mesh=mesh)


def shard_trained(module: DiffusionModule, mesh: DeviceMesh) -> None:
    """Spread every child of a task's module that has something to train.

    Raises:
        PolyditError: the module has parameters of its own, which nobody would keep equal, or frozen weights that are
            no plain tensors.
    """
    for option in ("quantize", "offload"):
        if getattr(module, option, None):
            raise PolyditError(
                f"--trainer.strategy fsdp2: does not go with --model.{option}; use ddp, or leave it out"
            )
    own = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
    if own:
        raise PolyditError(
            f"--trainer.strategy fsdp2: cannot spread {own[0]}, which {type(module).__name__} holds itself; use ddp"
        )
    for child in module.children():
        if any(p.requires_grad for p in child.parameters()) and not is_sharded(child):
            shard(child, mesh)


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy over ``fully_shard``, with checkpoints of whole tensors in one file.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; None chooses by device.
    """

    strategy_name = "fsdp2"

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Make one group of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # -- a checkpoint is restored as under any other strategy: before the optimiser, from whole tensors ------

    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The file, in every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the file in the first process."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, Path(filepath), storage_options)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors of what a checkpoint keeps, in the first process."""
        module = cast("DiffusionModule", self.lightning_module)
        keep = module.saved_names()
        return gathered(
            {name: v for name, v in module.state_dict().items() if name in keep}, self.is_global_zero
        )

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every process its part; the module has compared the names before."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        for name, value in checkpoint["state_dict"].items():
            if name in own:
                own[name].copy_(placed_like(value, own[name]))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole moments in the first process."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        return gathered(optimizer.state_dict(), self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every process its part."""
        for optimizer, given in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {
                    key: placed_like(value, parameters[number]) if isinstance(value, Tensor) else value
                    for key, value in values.items()
                }
                for number, values in given["state"].items()
            }
            optimizer.load_state_dict({**given, "state": state})


if FSDP2.strategy_name not in StrategyRegistry:
    StrategyRegistry.register(FSDP2.strategy_name, FSDP2, description=FSDP2.__doc__ or "")
