"""One training step without values: what it would hold in memory and how much it would compute.

torch's fake tensors have shapes and no values, so the step of a model of any size can be run on any machine. Every
tensor that an operation makes is followed from its birth to its end, forward and backward.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["PRECISIONS", "Rehearsal", "rehearse"]

PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    "32": (None, None),
    "32-true": (None, None),
    "64": (torch.float64, None),
    "64-true": (torch.float64, None),
    "bf16": (None, torch.bfloat16),
    "bf16-mixed": (None, torch.bfloat16),
    "bf16-true": (torch.bfloat16, None),
    "16": (None, torch.float16),
    "16-mixed": (None, torch.float16),
    "16-true": (torch.float16, None),
}
"""The Trainer's precisions: what the weights become, and what autocast computes in."""

LONG = 12
"""A run of this many equal blocks is counted by its first ones; the others cost the same."""


@dataclass(frozen=True)
class Rehearsal:
    """What one step needs besides weights and optimiser.

    Attributes:
        peak: Bytes of gradients, activations and temporary results at the worst moment.
        gradients: Bytes of gradients at the end.
        flops: Of forward and backward pass, multiplications and additions counted apart.
    """

    peak: int
    gradients: int
    flops: int

    @property
    def activations(self) -> int:
        """Bytes of the worst moment that the gradients do not explain."""
        return max(self.peak - self.gradients, 0)


def rehearse(
    module: Any, batch: Any, precision: str = "32-true", *, keeps_gradients: bool = False, whole: bool = False
) -> Rehearsal:
    """Run a training step of a module without values.

    Args:
        module: A prepared :class:`DiffusionModule`, on the meta device (it is left there) or anywhere else.
        batch: What its data module gives.
        precision: The Trainer's.
        keeps_gradients: Gradients are there when the step begins, as when several batches are accumulated.
        whole: Count each block; otherwise long runs of equal blocks are counted by their first ones.

    Raises:
        ValueError, RuntimeError, TypeError and others: what the step itself raises, such as shapes that do not fit.
    """
    runs = [] if whole else list(_equal_runs(module))
    # Two, because the second may change which moment is the worst; from there on each adds the same.
    base = _measure(module, batch, precision, keeps_gradients, [(run, 2) for run in runs])
    total = [base.peak, base.gradients, base.flops]
    for number, run in enumerate(runs):
        kept = [(other, 3 if other is run else 2) for other in runs]
        more = _measure(module, batch, precision, keeps_gradients, kept)
        for place, (value, least) in enumerate(
            zip((more.peak, more.gradients, more.flops), (base.peak, base.gradients, base.flops), strict=True)
        ):
            total[place] += (runs[number].count - 2) * (value - least)
    return Rehearsal(*total)


# -- one step ----------------------------------------------------------------------------------------------


def _measure(
    module: Any, batch: Any, precision: str, keeps_gradients: bool, runs: list[tuple[_Run, int]]
) -> Rehearsal:
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} cannot be counted; it is one of {', '.join(PRECISIONS)}")
    dtype, autocast = PRECISIONS[precision]
    fakes = _Fakes(FakeTensorMode(allow_non_fake_inputs=True), dtype)
    was_training = module.training
    with contextlib.ExitStack() as stack:
        for run, count in runs:
            stack.enter_context(run.shortened(count))
        stack.enter_context(fakes.replacing(module))
        stack.callback(module.train, was_training)
        module.train()
        batch = fakes.copy(batch)
        stack.enter_context(fakes.mode)
        watch = stack.enter_context(Watch(module, batch))
        trained = [p for p in module.parameters() if p.requires_grad]
        for _ in range(2 if keeps_gradients else 1):
            watch.peak, watch.flops = watch.held, 0
            with torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext():
                terms, output = module.losses(batch)
                loss = torch.stack([term.float() for term in terms.values()]).sum()
            del terms, output
            loss.backward()
            del loss
        gradients = sum(p.grad.untyped_storage().nbytes() for p in trained if p.grad is not None)
        return Rehearsal(watch.peak, gradients, watch.flops)


class Watch(TorchDispatchMode):
    """Counts the bytes of every storage that operations make while it is alive.

    Args:
        known: Modules and tensors that were there before; not counted.

    Attributes:
        held: Bytes alive.
        peak: The most that were.
        flops: Computed so far.
    """

    def __init__(self, *known: Any) -> None:
        super().__init__()
        self.held = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}
        self._known = [
            tensor.untyped_storage()
            for thing in known
            for tensor in (
                [*thing.parameters(), *thing.buffers()]
                if isinstance(thing, nn.Module)
                else (leaf for leaf in tree_flatten(thing)[0] if isinstance(leaf, Tensor))
            )
        ]
        self._sizes.update({storage._cdata: 0 for storage in self._known})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # two calls in three ask a fake tensor for its device
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        out = func(*args, **(kwargs or {}))
        formula = _FLOPS.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            return  # a view, or an operation in place
        self._sizes[key] = size
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.held -= self._sizes.pop(key, 0)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_FLOPS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


# -- a module without values -------------------------------------------------------------------------------


class _Fakes:
    """Stands fake tensors in for the tensors of a module and of what hangs on it."""

    def __init__(self, mode: FakeTensorMode, dtype: torch.dtype | None) -> None:
        self.mode, self.dtype = mode, dtype
        self._memo: dict[int, Tensor] = {}

    def copy(self, batch: Any) -> Any:
        """A batch of the same structure; its floating-point tensors in the dtype of the weights."""
        return tree_map(lambda leaf: self._like(leaf) if isinstance(leaf, Tensor) else leaf, batch)

    def _like(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._memo:
            dtype = self.dtype if self.dtype and tensor.is_floating_point() else tensor.dtype
            with self.mode:
                fake = torch.empty(tensor.shape, dtype=dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            self._memo[id(tensor)] = fake
        return self._memo[id(tensor)]

    @contextlib.contextmanager
    def replacing(self, module: nn.Module) -> Iterator[None]:
        """Fakes in the place of parameters, buffers and tensors kept as attributes, until the block ends."""
        undo: list[tuple[Any, Any, Any]] = []
        self._replace(module, undo, set())
        try:
            yield
        finally:
            for holder, key, value in undo:
                holder[key] = value

    def _replace(self, thing: Any, undo: list[tuple[Any, Any, Any]], seen: set[int]) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, dict):
            items: Any = thing.items()
        elif isinstance(thing, (list, tuple)):
            items = enumerate(thing)
        elif isinstance(thing, nn.Module) or type(thing).__module__.partition(".")[0] not in _FOREIGN:
            thing = getattr(thing, "__dict__", None)
            if thing is None:
                return
            items = thing.items()
        else:
            return
        for key, value in list(items):
            if isinstance(value, FakeTensor):
                continue
            if isinstance(value, Tensor):
                if isinstance(thing, tuple):
                    continue  # cannot be changed; what it holds of modules can
                undo.append((thing, key, value))
                thing[key] = self._like(value)
            elif not isinstance(value, type) and key not in ("_trainer", "trainer"):
                self._replace(value, undo, seen)


_FOREIGN = ("builtins", "torch", "lightning", "lightning_utilities", "numpy", "types", "functools", "weakref")
"""Libraries whose objects hold no tensors of the model (their modules are looked into all the same)."""


# -- equal blocks ------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """``count`` equal children of ``blocks`` one after the other, from ``start`` on."""

    blocks: nn.ModuleList
    start: int
    count: int

    @contextlib.contextmanager
    def shortened(self, count: int) -> Iterator[None]:
        """Only ``count`` of them."""
        whole = dict(self.blocks._modules)
        children = list(whole.values())
        kept = children[: self.start + count] + children[self.start + self.count :]
        self.blocks._modules = {str(number): child for number, child in enumerate(kept)}
        try:
            yield
        finally:
            self.blocks._modules = whole


def _equal_runs(module: Any) -> Iterator[_Run]:
    """The longest run of equal blocks of each list in the backbone, where it is long; outermost lists only."""
    taken: set[int] = set()
    for blocks in module.backbone.modules():
        if not isinstance(blocks, nn.ModuleList) or id(blocks) in taken:
            continue
        signatures = [_signature(child) for child in blocks]
        longest = _Run(blocks, 0, 0)
        start = 0
        while start < len(signatures):
            end = start
            while end < len(signatures) and signatures[end] == signatures[start]:
                end += 1
            if end - start > longest.count:
                longest = _Run(blocks, start, end - start)
            start = end
        if longest.count >= LONG:
            taken |= {id(inner) for child in blocks for inner in child.modules()}
            yield longest


def _signature(block: nn.Module) -> Mapping[str, Any]:
    """All that makes a block cost what it costs: classes, shapes, settings."""
    parts: dict[str, Any] = {
        name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in block.named_parameters()
    }
    for name, part in block.named_modules():
        settings = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str, tuple))}
        parts[f"{name}:"] = (type(part), settings)
    return parts
