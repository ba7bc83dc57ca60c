"""Hooks on sites for as long as a ``with`` statement lasts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .attention_probe import AttentionProbe
from .sites import ATTENTION_PARTS, Site, Visit, find_sites
from .streams import block_metadata, input_key

__all__ = ["Record", "read_features", "skip", "tap"]

Replacement = Tensor | Callable[[Tensor], Tensor]


def skip(value: Tensor) -> Tensor:
    """Replacement that leaves a sub-layer out (zeros) or, on the output of a block, the block (its input)."""
    return torch.zeros_like(value)


class Record(Mapping[str, Tensor]):
    """What was recorded: ``record["blocks.3"]`` is the latest value of a site.

    Values are the tensors themselves, neither copied nor detached.
    """

    def __init__(self, sites: Sequence[str], keep_all: bool) -> None:
        self._values: dict[str, list[Tensor]] = {name: [] for name in sites}
        self._keep_all = keep_all

    def add(self, name: str, value: Tensor) -> None:
        """Append, or overwrite where only the latest is kept."""
        if not self._keep_all:
            self._values[name].clear()
        self._values[name].append(value)

    def all(self, name: str) -> list[Tensor]:
        """Every value of a site in the order of the calls (with ``keep_all``)."""
        return list(self._values[name])

    def clear(self) -> None:
        """Forget the values, for instance between two sampling steps."""
        for values in self._values.values():
            values.clear()

    def __getitem__(self, name: str) -> Tensor:
        if not self._values[name]:
            raise KeyError(
                f"{name}: nothing recorded yet. Either the model has not run, or this attention does not go "
                "through torch.nn.functional.scaled_dot_product_attention"
            )
        return self._values[name][-1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, values in self._values.items() if values)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextmanager
def tap(
    model: nn.Module,
    sites: Sequence[str] = (),
    replace: Mapping[str, Replacement] | None = None,
    keep_all: bool = False,
) -> Iterator[Record]:
    """Record and replace what a model computes at the named sites.

    Recording changes no bit of the output. A recorded value is the one that flows on, after any replacement.
    With gradient checkpointing the backward pass runs the blocks again: keep it inside the ``with``.

    Args:
        model: has its blocks in an ``nn.ModuleList``.
        sites: what to record; see :mod:`polydit.core.probing.sites`.
        replace: site to a tensor, to a function of the present value, or to :func:`skip`.
        keep_all: keep the values of every call rather than of the latest.

    Yields:
        The record. All hooks are gone when the context ends, also after an exception.

    Raises:
        PolyditError: a name does not fit the model.
        ValueError: a replacement has another shape; a site that is read only.

    Example:
        >>> with tap(model, ["blocks.3", "blocks.*.attn.probs"], replace={"blocks.2.mlp": skip}) as record:
        ...     model(x, t)
        >>> record["blocks.3"].shape
    """
    record = Record([site.name for site in find_sites(model, sites)], keep_all)
    with _hooks(model, sites, replace or {}, record.add):
        yield record


def read_features(model: nn.Module, sites: Sequence[str], /, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Run the model only as far as the named sites and return their values.

    Args:
        model: as in :func:`tap`.
        sites: as in :func:`tap`.
        args: of the model.
        kwargs: of the model.
    """
    names = [site.name for site in find_sites(model, sites)]
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        found[name] = value
        if len(found) == len(names):
            raise _AllFoundError

    with _hooks(model, sites, {}, keep):
        try:
            model(*args, **kwargs)
        except _AllFoundError:
            return {name: found[name] for name in names}
    missing = next(name for name in names if name not in found)
    raise ValueError(f"site {missing!r}: the model ran without computing it")


class _AllFoundError(Exception):
    """Ends a forward pass early."""


@contextmanager
def _hooks(
    model: nn.Module,
    names: Sequence[str],
    replace: Mapping[str, Replacement],
    keep: Callable[[str, Tensor], None],
) -> Iterator[None]:
    recorded = {site.name for site in find_sites(model, names)}
    replacements = {site.name: value for name, value in replace.items() for site in find_sites(model, [name])}
    for name in replacements:
        if name.split(".")[-1] == "gated":
            raise ValueError(f"site {name!r} is read only: replace the value before its gate, {name[:-6]!r}")
    unique = {site.name: site for site in find_sites(model, [*recorded, *replacements])}

    def visit(name: str, value: Tensor, skipped: Tensor | None = None) -> Tensor:
        if name in replacements:
            new = replacements[name]
            if new is skip and skipped is not None:
                new = skipped
            elif not isinstance(new, Tensor):
                new = new(value)
            if new.shape != value.shape:
                raise ValueError(f"site {name!r} has the shape {tuple(value.shape)}, not {tuple(new.shape)}")
            value = new
        if name in recorded:
            keep(name, value)
        return value

    with ExitStack() as stack:
        attention = AttentionProbe(visit)
        # Gated contributions come last: they are read from what the other hooks have left.
        for site in sorted(unique.values(), key=lambda site: site.part == "gated"):
            if site.part in ATTENTION_PARTS:
                handles = attention.watch(site)
            elif site.part == "gated":
                handles = _watch_gated(site, visit)
            elif site.part == "input":
                handles = [site.module.register_forward_pre_hook(_input_hook(site, visit), with_kwargs=True)]
            else:
                handles = [site.module.register_forward_hook(_output_hook(site, visit), with_kwargs=True)]
            for handle in handles:
                stack.callback(handle.remove)
        if attention.sites:
            stack.enter_context(attention)
        yield


def _stream(site: Site, value: Any) -> int | None:
    """Position of the site's stream in a tuple of outputs, None if ``value`` is the stream itself."""
    if isinstance(value, Tensor):
        if site.text and site.module is site.block:
            raise ValueError(f"site {site.name!r}: {type(site.block).__name__} returns no text stream")
        return None
    image, text = 0, 1
    if site.module is site.block:
        metadata = block_metadata(site.block)
        if metadata is not None:
            image, text = metadata.return_hidden_states_index, metadata.return_encoder_hidden_states_index
    return text if site.text else image


def _input_hook(site: Site, visit: Visit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        key = input_key(site.block, kwargs, site.text)
        if isinstance(key, str):
            return args, {**kwargs, key: visit(site.name, kwargs[key])}
        return (*args[:key], visit(site.name, args[key]), *args[key + 1 :]), kwargs

    return hook


def _output_hook(site: Site, visit: Visit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        skipped = None
        if module is site.block:
            key = input_key(site.block, kwargs, site.text)
            skipped = kwargs[key] if isinstance(key, str) else args[key]
        index = _stream(site, output)
        if index is None:
            return visit(site.name, output, skipped)
        new = visit(site.name, output[index], skipped)
        return (*output[:index], new, *output[index + 1 :])

    return hook


def _watch_gated(site: Site, visit: Visit) -> list[Any]:
    """Record gate times output; the gate is read where the block computes its modulation."""
    gates: list[Tensor] = []
    kind = type(site.block).__name__
    unknown = f"site {site.name!r}: {kind} has no adaLN gate that is known; read the value before the gate."

    def native(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        block: Any = site.block
        vectors = block.modulation_vectors(bound["conditioning"], bound.get("token_group"))
        gates[:] = [vectors[2 if site.branch == "attn" else 5]]

    def diffusers(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # AdaLayerNormZero: (x, gate_attn, shift, scale, gate_mlp); SD3.5 appends (x2, gate_attn2).
        position = {"attn": 1, "mlp": 4, "attn2": 6}[site.branch]
        if isinstance(output, Tensor) or len(output) <= position:
            raise PolyditError(unknown)
        gates[:] = [output[position][:, None]]

    def contribution(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        index = _stream(site, output)
        visit(site.name, gates.pop() * (output if index is None else output[index]))

    if hasattr(site.block, "modulation_vectors") and site.branch in ("attn", "mlp"):
        source = site.block.register_forward_pre_hook(native, with_kwargs=True)
    elif site.branch in ("attn", "mlp", "attn2"):
        norm = getattr(site.block, "norm1_context" if site.text else "norm1", None)
        if norm is None:
            raise PolyditError(unknown)
        source = norm.register_forward_hook(diffusers)
    else:
        raise PolyditError(unknown)
    return [source, site.module.register_forward_hook(contribution)]
