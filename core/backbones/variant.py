"""What a variant of a model needs to keep diffusers' configuration working."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["extends"]

Init = TypeVar("Init", bound=Callable[..., None])


def extends(parent: type) -> Callable[[Init], Init]:
    """Decorator for ``__init__(self, own=..., **kwargs)`` of a model that passes ``kwargs`` to ``parent``.

    diffusers reads the arguments that a configuration may hold from the signature; this makes the parent's
    visible there. Place it above ``register_to_config``.
    """

    def decorate(init: Init) -> Init:
        own = list(inspect.signature(init).parameters.values())
        names = {p.name for p in own}
        inherited = [
            p for p in list(inspect.signature(parent.__init__).parameters.values())[1:] if p.name not in names
        ]
        named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        merged: list[Any] = [
            named[0],
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in named[1:] + inherited),
        ]
        init.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
        return init

    return decorate
