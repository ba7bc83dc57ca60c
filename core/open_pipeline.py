"""A pipeline as the options of ``predict`` ask for it: weights, device, precision, LoRA, cache."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .devices import choose_device, choose_dtype
from .errors import PolyditError
from .task import TaskSpec, nearest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["CACHES", "check_cache_name", "choose_weights", "open_pipeline", "read_cache"]

CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "taylorseer": ("TaylorSeer", {"interval": 3, "order": 1, "first_enhance": 2}),
    "fora": ("FORA", {"interval": 2}),
    "delta-dit": ("DeltaDiT", {"interval": 2, "blocks": 0.75, "switch": 0.6}),
    "block-span": ("BlockSpan", {"interval": 3, "order": 1, "start": 0, "stop": None}),
    "first-block": ("FirstBlock", {"threshold": 0.08, "first": 1, "last": 0, "warmup": 0, "order": 0}),
    "deepcache": ("DeepCache", {"interval": 3}),
    "rettention": ("Rettention", {"sparsity": 0.25, "warmup": 5, "interval": 5, "text_tokens": 0}),
    "adaspa": ("AdaSpa", {"sparsity": 0.8, "block": 64, "text_tokens": 0}),
}
"""Methods of `polydit.core.acceleration` by the name on the command line: the class, and what it is given.

On the command line more may follow the name, and goes before this: ``taylorseer:interval=2,order=2``.
"""


def choose_weights(task: TaskSpec, given: str | Path | None, system: str | None = None) -> str | Path:
    """The folder or hub id that was given, or the folder of the weights that came with the task.

    Args:
        task: whose weights.
        given: folder or hub id.
        system: which of the task's systems, where several came with weights; by default the task's own choice.

    Raises:
        PolyditError: none was given, and none came; or both a folder and a system were given.
    """
    if given is not None:
        if system is not None:
            raise PolyditError(
                f"--system {system}: chooses among the weights that came with the task; leave out --weights"
            )
        return given
    shipped = task.weights_folder(system)
    if shipped is None or not shipped.is_dir():
        raise PolyditError(
            f"--weights: {task.name} comes without weights in this installation ({shipped}); "
            f"train some with `polydit {task.name} fit`, or give a folder"
        )
    return shipped


def open_pipeline(
    task: TaskSpec,
    weights: str | Path,
    options: argparse.Namespace,
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> DiffusionPipeline:
    """Load a pipeline, add the LoRA, bring it to its device, switch on the cache.

    Args:
        task: refuse weights of another one.
        weights: folder or hub id.
        options: ``lora``, ``lora_scale``, ``device``, ``dtype`` and ``cache`` as ``predict`` parses them.
        settings: what was chosen is added to it, JSON-ready.
        say: where lines for the user go.

    Raises:
        PolyditError: as `polydit.load`; or the LoRA, the device or the cache does not fit.
    """
    from .load import load, locate

    index = locate(str(weights), task.name)  # before anything that takes seconds to import
    if options.lora is not None and not options.lora.is_file():
        raise PolyditError(f"--lora {options.lora}: no such file")
    _quiet()
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    pipe = load(index.folder, task=task.name, dtype=dtype)
    if options.lora is not None:
        from .adapters import apply_lora

        matched = apply_lora(pipe.transformer, options.lora, options.lora_scale)
        settings["lora_report"] = str(matched)
        say(f"{options.lora}: {matched}")
    pipe.to(device)
    if options.cache != "none":
        _accelerate(pipe, options.cache)
    settings |= {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    return pipe


def check_cache_name(name: str) -> None:
    """Refuse what is neither a cache, nor a file that holds one.

    Raises:
        PolyditError: with the names, or the settings of that cache, that there are.
    """
    if name == "none":
        return
    if name.endswith((".json", ".safetensors")):
        if not Path(name).is_file():
            wanted = (
                "`redundancy` and `learn-cache` write" if name.endswith(".json") else "`learn-cache` writes"
            )
            raise PolyditError(f"--cache {name}: no such file; {wanted} one")
        return
    read_cache(name)


def read_cache(text: str) -> tuple[str, dict[str, Any]]:
    """Class and settings of ``NAME`` or ``NAME:setting=number,...``.

    Raises:
        PolyditError: the cache, a setting of it or a number is unknown.
    """
    name, _, more = text.partition(":")
    if name not in CACHES:
        raise PolyditError(f"--cache: {name} is not one of none, {', '.join(CACHES)}{nearest(name, CACHES)}")
    class_name, values = CACHES[name][0], dict(CACHES[name][1])
    for setting in filter(None, more.split(",")):
        key, _, value = setting.partition("=")
        if key not in values:
            raise PolyditError(
                f"--cache {text}: {name} has no setting {key}; it has {', '.join(values)}{nearest(key, values)}"
            )
        try:
            number = json.loads(value)
        except json.JSONDecodeError:
            number = None
        real = isinstance(values[key], float)
        if isinstance(number, bool) or not isinstance(number, int | float if real else int):
            kind, such = "number" if real else "whole number", values[key] or 2
            raise PolyditError(f"--cache {text}: {key} is a {kind}, as in {name}:{key}={such}")
        values[key] = number
    return class_name, values


def _accelerate(pipe: Any, name: str) -> None:
    from torch import nn

    from . import acceleration

    if not any(isinstance(getattr(pipe, part, None), nn.Module) for part in ("transformer", "unet")):
        raise PolyditError(
            f"--cache {name}: {type(pipe).__name__} has no network that is asked step by step; leave it out"
        )
    try:
        if name.endswith((".json", ".safetensors")):
            policy = acceleration.read_policy(name, pipe)
        else:
            class_name, values = read_cache(name)
            policy = getattr(acceleration, class_name)(**values)
        acceleration.accelerate(pipe, policy, strict=True)
    except PolyditError as error:
        raise PolyditError(f"--cache {name}: {error}; leave it out") from error


def _quiet() -> None:
    """Keep the libraries' loading bars and remarks off the screen; what matters is checked and said by us."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
