"""Places in a model whose computing can be left out, and how each is found and bound.

Only ``forward`` of the modules concerned is bound, on the instance; modules, block lists and state dict stay as they
are, and unbinding restores every ``forward`` object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import PolyditError
from .blocks import BlockPort
from .estimators import Memory, Taylor

__all__ = ["BranchSite", "CacheSite", "SpanSite", "bind", "branch_sites"]

ATTENTION = ("attn", "attn1", "attn2", "self_attn")
CROSS = ("cross_attn", "attn2")
FEED_FORWARD = ("mlp", "ff", "ffn", "feed_forward", "ff_context", "img_mlp", "txt_mlp")
Unbind = Callable[[], None]


def bind(module: nn.Module, name: str, function: Callable[..., Any]) -> Unbind:
    """Put a function in the place of a method of this one module; what is returned puts the method back."""
    held = name in module.__dict__
    before = module.__dict__.get(name)
    object.__setattr__(module, name, function)

    def unbind() -> None:
        if held:
            object.__setattr__(module, name, before)
        else:
            module.__dict__.pop(name, None)

    return unbind


class CacheSite:
    """A place that is computed or estimated.

    Attributes:
        name: where it is, as :mod:`polydit.core.probing.sites` writes it.
        estimator: what stands in for it.
        active: False computes and keeps nothing.
        compute: in this call of the model; decided before the call or, by a signal, within it.
        memory: what is kept for the branch of this call.
        learning: whether what is computed is kept.
        calls: how often it was asked in this call of the model.
    """

    def __init__(self, name: str, estimator: Taylor) -> None:
        self.name = name
        self.estimator = estimator
        self.active = False
        self.compute = True
        self.learning = True
        self.calls = 0
        self._step = 0
        self._is_first = True
        self.memory: Memory = estimator.memory()
        self._memories: dict[int, Memory] = {}

    def enter(self, step: int, branch: int, compute: bool | None, learn: bool = True) -> None:
        """A call of the model begins; ``compute`` None leaves the decision to a signal within it."""
        self.learning = learn
        if branch not in self._memories:
            self._memories[branch] = self.estimator.memory()
        self.memory = self._memories[branch]
        self._step, self._is_first = step, step == 0
        self.calls = 0
        self.active = True
        if compute is not None:
            self.decide(compute)

    def decide(self, compute: bool) -> None:
        """Whether to compute in this call; there is no choice as long as nothing is kept."""
        self.compute = compute or self.memory.last is None
        if self.learning or not self.compute:
            self.memory.plan(self._step, self.compute)

    def forget(self, branch: int | None = None) -> None:
        """Drop what is kept, of one branch or of all."""
        if branch is None:
            self._memories.clear()
        else:
            self._memories.pop(branch, None)

    @property
    def bytes(self) -> int:
        """Memory that is held, over all branches."""
        return sum(memory.bytes for memory in self._memories.values())

    def attach(self) -> list[Unbind]:
        """Bind; what undoes it."""
        raise NotImplementedError

    def _count(self) -> None:
        self.calls += 1
        if self.calls > 1 and not (self._is_first and self.compute):
            raise PolyditError(
                f"cache at {self.name}: it runs several times in a call of the model, which sampling with cached "
                "conditions does; use one of the two caches"
            )


class BranchSite(CacheSite):
    """The output of a module: attention or MLP before its gate, or any other whose inputs are not needed.

    Args:
        module: whose output it is.
        feeders: modules that are computed for this one only, and left out with it.
        method: of the module, whose output it is.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        estimator: Taylor,
        feeders: Sequence[nn.Module] = (),
        method: str = "forward",
    ) -> None:
        super().__init__(name, estimator)
        self.module = module
        self.method = method
        self.feeders = tuple(feeders)

    def attach(self) -> list[Unbind]:
        """Bind; what undoes it."""
        undo = [bind(self.module, self.method, self._wrap(getattr(self.module, self.method)))]
        return undo + [bind(feeder, "forward", self._starve(feeder.forward)) for feeder in self.feeders]

    def _wrap(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return inner(*args, **kwargs)
            self._count()
            if not self.compute:
                return self.estimate()
            return self.learn(inner(*args, **kwargs))

        return forward

    def recall(self) -> Any:
        """The output of a call that leaves it out."""
        self._count()
        return self.estimate()

    def estimate(self) -> Any:
        """The output when it is left out."""
        return self.memory.predict()

    def learn(self, output: Any) -> Any:
        """Keep what was computed; what flows on."""
        if self.learning:
            self.memory.update(output)
        return output

    def _starve(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active or self.compute:
                return inner(*args, **kwargs)
            tokens: Tensor = args[0] if args else kwargs["hidden_states"]
            return tokens[..., :0]  # joined with others and dropped by the module that is left out

        return forward


class SpanSite(CacheSite):
    """What a run of blocks adds to the tokens: on a step that leaves them out it is added to the present tokens.

    Args:
        name: of the site.
        blocks: consecutive ones, in the order of the call.
        estimator: forecasts what is added.
        residual: False keeps the last block's output instead, which forgets the present input.
    """

    def __init__(
        self, name: str, blocks: Sequence[nn.Module], estimator: Taylor, residual: bool = True
    ) -> None:
        super().__init__(name, estimator)
        self.ports = [BlockPort(block) for block in blocks]
        self.residual = residual
        self._entered: tuple[Tensor | None, ...] = ()

    def attach(self) -> list[Unbind]:
        """Bind; what undoes it."""
        return [
            bind(port.block, "forward", self._wrap(port, index, port.block.forward))
            for index, port in enumerate(self.ports)
        ]

    def keep(self, value: Any) -> None:
        """Remember what the blocks gave."""
        self.memory.update(value)

    def _wrap(self, port: BlockPort, index: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        last = len(self.ports) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return inner(*args, **kwargs)
            if index == 0:
                self._count()
                self._entered = port.read(args, kwargs)
            if self.compute:
                output = inner(*args, **kwargs)
                port.learn(output)
                if index == last and self.learning:
                    left = port.streams(output)
                    self.keep(subtract(left, self._entered) if self.residual else left)
                    self._entered = ()
                return output
            streams = port.read(args, kwargs)
            if index == 0:
                kept = self.memory.predict()
                streams = add(streams, kept) if self.residual else kept
                self._entered = ()
            return port.pack(streams)

        return forward


def subtract(left: Sequence[Tensor | None], entered: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What was added to each stream; None for one that ends."""
    return tuple(a - b if a is not None and b is not None else None for a, b in _pairs(left, entered))


def add(streams: Sequence[Tensor | None], added: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The streams with what was added to them; one for which nothing is known stays as it is."""
    return tuple(a if b is None or a is None else a + b for a, b in _pairs(streams, added))


def _pairs(a: Sequence[Any], b: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    for index in range(max(len(a), len(b))):
        yield (a[index] if index < len(a) else None, b[index] if index < len(b) else None)


def branch_sites(
    blocks: Sequence[tuple[str, nn.Module]], estimator: Taylor, cross_attention: bool = False
) -> list[CacheSite]:
    """The attention and MLP outputs of blocks before their gates, found by the names that the field gives them.

    A block whose attention and MLP run side by side into one projection (FLUX) has one site, behind it.

    Args:
        blocks: name and module.
        estimator: of each site.
        cross_attention: take the attention to the text too.
    """
    sites: list[CacheSite] = []
    for name, block in blocks:
        children = dict(block.named_children())
        if {"attn", "proj_mlp", "proj_out"} <= children.keys():
            feeders = (children["attn"], children["proj_mlp"])
            sites.append(BranchSite(f"{name}.proj_out", children["proj_out"], estimator, feeders))
            continue
        for child, module in children.items():
            if child == "mlp" and hasattr(block, "feed"):  # a block that does more than call its MLP
                sites.append(BranchSite(f"{name}.mlp", block, estimator, method="feed"))
                continue
            crosses = child in CROSS and (child not in ATTENTION or _is_cross(module, children))
            wanted = cross_attention if crosses else child in ATTENTION + FEED_FORWARD
            if wanted:
                sites.append(BranchSite(f"{name}.{child}", module, estimator))
    return sites


def _is_cross(module: nn.Module, siblings: dict[str, nn.Module]) -> bool:
    known = getattr(module, "is_cross_attention", None)
    if known is not None:
        return bool(known)
    return "attn1" in siblings  # LTX: the second of two is the one to the text
