"""Names of the places inside a backbone that can be read or replaced.

========================  =========================================================================
``blocks.3``              output of the fourth block: the residual stream (B, N, D)
``blocks.3.input``        what enters it
``blocks.3.attn``         output of its self-attention, before the gate
``blocks.3.mlp``          output of its MLP, before the gate
``blocks.3.attn.gated``   what its attention adds to the residual stream; also ``mlp.gated``; read only
``blocks.3.attn.q``       queries as they enter the attention product (B, H, N, d); ``k``, ``v`` likewise
``blocks.3.attn.logits``  scaled products with the mask, before the softmax (B, H, N, M), float32
``blocks.3.attn.probs``   attention probabilities (B, H, N, M), float32
``blocks.3.attn.text``    the text stream of a joint block; also ``blocks.3.text``, ``blocks.3.input.text``
========================  =========================================================================

``blocks`` stands for ``transformer_blocks`` too; another list is called by its own name
(``single_transformer_blocks.3``). ``attn`` finds ``attn1``, ``mlp`` finds ``ff``; any other submodule is
called by its own name (``blocks.3.attn2``, ``blocks.3.cross_attn``). ``*`` for the number means every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import PolyditError

__all__ = ["ATTENTION_PARTS", "Site", "Visit", "find_sites"]

Visit = Callable[..., Tensor]
"""(site name, value, [what a skipped block returns]) -> the value that flows on."""

ATTENTION_PARTS = ("q", "k", "v", "logits", "probs")
PARTS = ("input", "gated", *ATTENTION_PARTS)
ALIASES = {
    "blocks": ("blocks", "transformer_blocks"),
    "attn": ("attn", "attn1", "self_attn"),
    "mlp": ("mlp", "ff", "ffn", "feed_forward"),
}


@dataclass(frozen=True)
class Site:
    """A place in a model.

    Attributes:
        name: as the user wrote it, with the number in place of ``*``.
        block: the block.
        module: the block itself, or its submodule.
        branch: ``"attn"``, ``"mlp"`` (whatever the model calls them) or the submodule's own name; empty for
            the block.
        part: one of ``input``, ``gated``, ``q``, ``k``, ``v``, ``logits``, ``probs``; empty for the output.
        text: the text stream rather than the image stream.
    """

    name: str
    block: nn.Module
    module: nn.Module
    branch: str
    part: str
    text: bool


def find_sites(model: nn.Module, names: Iterable[str]) -> list[Site]:
    """Resolve site names on a model, in the given order.

    Raises:
        PolyditError: a name does not fit the model; says what the model has.
    """
    sites: list[Site] = []
    for name in names:
        stem, _, rest = name.partition(".")
        number, _, tail = rest.partition(".")
        blocks = _child(model, stem)
        if not isinstance(blocks, nn.ModuleList):
            lists = [key for key, child in model.named_children() if isinstance(child, nn.ModuleList)]
            raise PolyditError(
                f"site {name!r}: {type(model).__name__} has no block list {stem!r}, only {lists}."
            )
        if number == "*":
            ending = f".{tail}" if tail else ""
            sites += [_site(f"{stem}.{i}{ending}", block, tail) for i, block in enumerate(blocks)]
        elif number.isdigit() and int(number) < len(blocks):
            sites.append(_site(name, blocks[int(number)], tail))
        else:
            raise PolyditError(f"site {name!r}: give a block number from 0 to {len(blocks) - 1}, or *.")
    return sites


def _site(name: str, block: nn.Module, tail: str) -> Site:
    words = tail.split(".") if tail else []
    text = bool(words) and words[-1] == "text"
    words = words[:-1] if text else words
    part = words.pop() if words and words[-1] in PARTS else ""
    branch = ".".join(next((key for key, names in ALIASES.items() if word in names), word) for word in words)
    module = block
    for word in words:
        # SD3 and FLUX: one attention for both streams, but an MLP of its own for the text.
        child = (_child(module, word, "_context") if text else None) or _child(module, word)
        if child is None:
            children = ", ".join(key for key, _ in block.named_children())
            raise PolyditError(f"site {name!r}: {type(block).__name__} has no {branch!r}, only {children}.")
        module = child
    if part and (part == "input") == bool(branch):
        raise PolyditError(f"site {name!r}: .input belongs to a block, .{part} to its attention or MLP.")
    if part in ATTENTION_PARTS and text:
        raise PolyditError(f"site {name!r}: .{part} holds all streams of the attention; leave .text out.")
    return Site(name, block, module, branch, part, text)


def _child(module: nn.Module, name: str, suffix: str = "") -> nn.Module | None:
    for candidate in ALIASES.get(name, (name,)):
        child = getattr(module, candidate + suffix, None)
        if isinstance(child, nn.Module):
            return child
    return None
