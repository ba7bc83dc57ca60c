"""How a layer is called by those who published a model, and by diffusers: the form of the tables in ``maps_*.py``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

__all__ = ["NameMap", "Rule", "same_in_blocks", "unchanged"]


@dataclass(frozen=True)
class Rule:
    """One published layer and what it is in diffusers. ``*`` stands for the number of a block.

    Attributes:
        native: Published name.
        modules: The diffusers layers whose outputs the published one computes at once, in this order.
        widths: Rows of each of them in units of the input's width; read only where there are several.
        swap: A modulation that, where it has two parts, has shift before scale (diffusers: scale before shift).
    """

    native: str
    modules: tuple[str, ...]
    widths: tuple[int, ...] = ()
    swap: bool = False


def unchanged(*names: str) -> tuple[Rule, ...]:
    """Rules for layers that are published under the name they have in diffusers."""
    return tuple(Rule(name, (name,)) for name in names)


def same_in_blocks(native: str, module: str, *rules: Rule) -> tuple[Rule, ...]:
    """Rules for the layers inside a block, with the block's name before each."""
    return tuple(
        Rule(
            f"{native}.{rule.native}",
            tuple(f"{module}.{name}" for name in rule.modules),
            rule.widths,
            rule.swap,
        )
        for rule in rules
    )


@dataclass(frozen=True)
class NameMap:
    """Look-up in both directions, with dots or with kohya's underscores."""

    rules: tuple[Rule, ...]

    @cached_property
    def _native(self) -> dict[bool, list[tuple[re.Pattern[str], Rule]]]:
        return {flat: [(_pattern(rule.native, flat), rule) for rule in self.rules] for flat in (False, True)}

    @cached_property
    def _modules(self) -> dict[bool, list[tuple[re.Pattern[str], Rule, str]]]:
        return {
            flat: [(_pattern(name, flat), rule, name) for rule in self.rules for name in rule.modules]
            for flat in (False, True)
        }

    def from_native(self, name: str, flat: bool = False) -> tuple[Rule, str] | None:
        """The rule of a published name, and the number of its block ("" outside of blocks).

        Args:
            name: The published name.
            flat: It has underscores where its dots were.
        """
        for pattern, rule in self._native[flat]:
            if match := pattern.fullmatch(name):
                return rule, "".join(match.groups())
        return None

    def from_module(self, name: str, flat: bool = False) -> tuple[Rule, str, str] | None:
        """The rule that a diffusers name is part of, the number of its block, and the name with dots."""
        for pattern, rule, dotted in self._modules[flat]:
            if match := pattern.fullmatch(name):
                number = "".join(match.groups())
                return rule, number, dotted.replace("*", number)
        return None

    def knows(self, names: Iterable[str]) -> bool:
        """Whether each of these is a name of this map, in whatever form."""
        for name in names:
            flat = "." not in name
            if self.from_native(name, flat) is None and self.from_module(name, flat) is None:
                return False
        return True


def _pattern(name: str, flat: bool) -> re.Pattern[str]:
    text = name.replace(".", "_") if flat else name
    return re.compile(re.escape(text).replace(r"\*", r"(\d+)"))
