"""Which modules of a backbone an adapter goes to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import nn

from ..errors import PolyditError

__all__ = ["adaptable_modules", "matches", "resolve_targets"]

ADDED_TEXT = re.compile(r".*\.(add_[qkv]_proj|to_add_out|add_[qkv])")


def adaptable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with a weight that a LoRA can change, by name; those that carry one already are included."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if ".base_layer" in name or ".lora_" in name:
            continue
        if hasattr(module, "base_layer") or isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            found[name] = module
    return found


def block_linears(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the repeated blocks (members of a ``ModuleList``)."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    inside = re.compile("|".join(rf"{re.escape(name)}\.\d+\." for name in lists) or r"(?!)")
    return [
        name
        for name, module in adaptable_modules(model).items()
        if inside.match(name) and isinstance(getattr(module, "base_layer", module), nn.Linear)
    ]


def matches(name: str, pattern: str) -> bool:
    """Whether a module name ends with the given dotted ending, or is matched whole by the expression."""
    return name == pattern or name.endswith(f".{pattern}") or re.fullmatch(pattern, name) is not None


def choose(names: Iterable[str], patterns: Sequence[str], option: str) -> list[str]:
    """Names that some pattern matches; a pattern that matches nothing is an error."""
    names = list(names)
    for pattern in patterns:
        try:
            found = any(matches(name, pattern) for name in names)
        except re.error as error:
            raise PolyditError(f"{option}: {pattern!r} is not a regular expression ({error})") from error
        if not found:
            ends = {".".join(name.split(".")[i:]) for name in names for i in range(name.count(".") + 1)}
            near = difflib.get_close_matches(pattern, sorted(ends), 1, 0.4)
            hint = (
                f"; did you mean {near[0]!r}?" if near else f"; there are for example {', '.join(names[:3])}"
            )
            raise PolyditError(f"{option}: no module matches {pattern!r}{hint}")
    return [name for name in names if any(matches(name, pattern) for pattern in patterns)]


def resolve_targets(model: nn.Module, targets: str | Sequence[str], exclude: Sequence[str] = ()) -> list[str]:
    """Full names of the modules that an adapter goes to.

    Args:
        model: The backbone.
        targets: ``attention``, ``linear``, an expression, or a list of name endings and expressions.
        exclude: Name endings and expressions to leave out.

    Raises:
        PolyditError: something matches no module; names the nearest one.
    """
    if targets in ("attention", "linear"):
        chosen = block_linears(model)
        if targets == "attention":
            chosen = [
                name
                for name in chosen
                if any("attn" in part or "attention" in part for part in name.split(".")[:-1])
                and not ADDED_TEXT.fullmatch(name)
                and "norm" not in name
            ]
        if not chosen:
            raise PolyditError(
                f"model.adapter.targets: {type(model).__name__} has no {targets} layers in repeated blocks; "
                "name the modules"
            )
    else:
        patterns = [targets] if isinstance(targets, str) else list(targets)
        chosen = choose(adaptable_modules(model), patterns, "model.adapter.targets")
    dropped = set(choose(chosen, list(exclude), "model.adapter.exclude")) if exclude else set()
    return [name for name in chosen if name not in dropped]
