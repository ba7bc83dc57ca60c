"""From a training checkpoint to what people use: a pipeline folder, or a LoRA file."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from ..adapters import bake, save_lora
from ..errors import PolyditError
from .card import Card, CardOptions, corpus_summary, training_facts
from .checkpoints import read_checkpoint

if TYPE_CHECKING:
    from ..task import TaskSpec
    from .module import DiffusionModule

__all__ = ["export", "export_pipeline", "load_module", "save_pipeline"]


def load_module(
    spec: TaskSpec,
    ckpt_path: str | Path,
    weights: Literal["average", "raw"] = "average",
    *,
    adapter_only: bool = False,
) -> DiffusionModule:
    """The module of a checkpoint, on the CPU in eval mode, with the settings it was trained with.

    Args:
        spec: The task.
        ckpt_path: Written by ``fit``.
        weights: The average of the weights, or the weights of the last step.
        adapter_only: Leave the frozen weights without values, where the adapter can be had without them.

    Raises:
        PolyditError: the checkpoint is unreadable or of another task.
    """
    return _module_of(spec, _read(spec, ckpt_path), weights, adapter_only)


def _read(spec: TaskSpec, ckpt_path: str | Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(ckpt_path)
    task = checkpoint["polydit"].get("task")
    if task != spec.name:
        raise PolyditError(f"{ckpt_path}: trained for {task}, not {spec.name}; use `polydit {task} export`")
    return checkpoint


def _module_of(
    spec: TaskSpec, checkpoint: dict[str, Any], weights: str, adapter_only: bool
) -> DiffusionModule:
    from .config import instantiate, model_settings

    config = copy.deepcopy(checkpoint["polydit"]["config"])
    settings = model_settings(config)
    adapter = settings.get("adapter")
    if adapter:
        adapter["init_from"] = None  # the checkpoint is further than that
    else:
        settings["init_weights"] = None  # all of them are in the checkpoint
    settings |= {"quantize": None, "offload": False}  # a way to train, not a part of the result
    # These take a part of the base into the adapter, so their file needs the base's values.
    needs_base = not adapter or adapter.get("init", "default").startswith(("pissa", "olora"))
    device = "meta" if adapter_only and not needs_base else "cpu"
    module = instantiate(spec, config, device)
    with torch.device(device):
        module.prepare()
    module.on_load_checkpoint(checkpoint)
    state = checkpoint["state_dict"]
    if weights == "raw":
        state = {**state, **checkpoint.get("current_model_state", {})}
    module.load_state_dict(state, strict=False, assign=device == "meta")
    return module.eval()


def export(
    spec: TaskSpec,
    ckpt_path: str | Path,
    output: str | Path,
    what: Literal["pipeline", "lora"] | None = None,
    *,
    layout: Literal["diffusers", "kohya", "comfyui"] | None = None,
    weights: Literal["average", "raw"] = "average",
    dtype: Literal["float32", "bfloat16"] = "float32",
    format: Literal["diffusers", "onnx"] = "diffusers",
    card: CardOptions | None = None,
    figures: Mapping[str, float] | None = None,
    may_lack: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write what ``predict``, the demo and a script load.

    Args:
        spec: The task.
        ckpt_path: Written by ``fit``.
        output: Folder of the pipeline, or the ``.safetensors`` file (or a folder for it) of the LoRA.
        what: ``pipeline`` (an adapter is merged into it) or ``lora``; None chooses by what was trained.
        layout: Whose names a LoRA file has; None is ``diffusers``.
        weights: The average of the weights, or the weights of the last step.
        dtype: Precision of a pipeline's files.
        format: ``onnx`` writes the transformer of the pipeline as ``transformer.onnx``, or as ``output`` itself.
        card: Data and licence; what is None there is taken from the run's config.
        figures: Measured values for the card.
        may_lack: Write a card that says what it lacks; otherwise a pipeline without data or licence is refused.
        overwrite: Replace what is there.

    Returns:
        The folder or file.

    Raises:
        PolyditError: the output exists, the checkpoint is unreadable, it holds no adapter, or the card lacks something.
    """
    from .config import model_settings

    output = Path(output)
    checkpoint = _read(spec, ckpt_path)
    has_adapter = bool(model_settings(checkpoint["polydit"]["config"]).get("adapter"))
    if what is None:
        what = "lora" if has_adapter and format == "diffusers" else "pipeline"
    if what == "lora":
        if not has_adapter:
            raise PolyditError(f"{ckpt_path}: was trained without an adapter; export a pipeline instead")
        if format == "onnx":
            raise PolyditError(
                "--format onnx: is for the whole model; ask for --what pipeline, which merges the LoRA"
            )
        module = _module_of(spec, checkpoint, weights, adapter_only=True)
        path = output if output.suffix == ".safetensors" else output / "lora.safetensors"
        written = card_of(spec, checkpoint, weights, card, figures)
        return save_lora(
            module.backbone,
            path,
            layout=layout or "diffusers",
            metadata={"task": spec.name, **written.entries()},
            overwrite=overwrite,
        )
    if layout is not None:
        raise PolyditError("--layout: a pipeline has none; leave it out, or ask for --what lora")
    written = card_of(spec, checkpoint, weights, card, figures)
    if format == "diffusers":
        _refuse_existing(output, overwrite)
        if not may_lack:
            written.refuse_incomplete()
    module = _module_of(spec, checkpoint, weights, adapter_only=False)
    if has_adapter:
        bake(module.backbone)
    written.facts["parameters"] = sum(p.numel() for p in module.backbone.parameters())
    return _write(module.build_pipeline(), output, written, dtype, format, overwrite)


def export_pipeline(
    spec: TaskSpec,
    folder: str | Path,
    output: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    format: Literal["diffusers", "onnx"] = "diffusers",
    card: CardOptions | None = None,
    figures: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a saved pipeline anew: with a complete card, in another precision, or as ONNX.

    Args:
        spec: The task.
        folder: A pipeline folder.
        output: See :func:`export`, as the other arguments.
        dtype: See :func:`export`.
        format: See :func:`export`.
        card: See :func:`export`; what is None there is taken from the card of the folder.
        figures: See :func:`export`; they join those of the folder's card.
        overwrite: See :func:`export`.

    Raises:
        PolyditError: the folder is no pipeline of this task, the output exists, or the card lacks something.
    """
    from ..load import load, read_index

    folder = Path(folder).expanduser()
    found = read_index(folder).task.name
    if found != spec.name:
        raise PolyditError(
            f"--pipeline {folder}: is for {found}, not {spec.name}; use `polydit {found} export`"
        )
    written = Card.read(spec, folder)
    written.options = _merged(card, written.options)
    written.figures |= figures or {}
    if format == "diffusers":
        _refuse_existing(Path(output), overwrite)
        written.refuse_incomplete()
    return _write(load(folder), Path(output), written, dtype, format, overwrite)


def card_of(
    spec: TaskSpec,
    checkpoint: Mapping[str, Any],
    weights: str,
    card: CardOptions | None,
    figures: Mapping[str, float] | None,
) -> Card:
    """The card of what a checkpoint holds: what is given here, then what its config says, then what its data says."""
    config = checkpoint["polydit"]["config"]
    options = _merged(card, CardOptions(**(config.get("card") or {})))
    facts, measured = training_facts(checkpoint, weights)
    return Card(
        spec, _merged(options, CardOptions(corpus_summary(config))), facts, {**measured, **(figures or {})}
    )


def _merged(first: CardOptions | None, second: CardOptions) -> CardOptions:
    first = first or CardOptions()
    return CardOptions(first.data_source or second.data_source, first.license or second.license)


def _write(pipeline: Any, output: Path, card: Card, dtype: str, format: str, overwrite: bool) -> Path:
    if format == "onnx":
        from .onnx_export import export_onnx

        path = output if output.suffix == ".onnx" else output / "transformer.onnx"
        entries = {
            f"polydit.{name}": value for name, value in {"task": card.task.name, **card.entries()}.items()
        }
        return export_onnx(pipeline.transformer, path, metadata=entries, overwrite=overwrite)
    if dtype == "bfloat16":
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                torch.nn.Module.to(component, torch.bfloat16)  # diffusers' own warns, about nothing
    return save_pipeline(pipeline, output, card=card, overwrite=overwrite)


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise PolyditError(f"{output}: exists already; choose another name or pass --overwrite")


def _forget_origin(folder: Path) -> None:
    """Take out where on this machine the parts were loaded from; whoever loads the folder knows where it is."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_pipeline(
    pipeline: Any, output: str | Path, *, card: Card | None = None, overwrite: bool = False
) -> Path:
    """Save a pipeline and its card to a temporary folder, then rename it.

    Raises:
        PolyditError: the folder exists, weights are not finite, or the disk is full.
    """
    output = Path(output)
    _refuse_existing(output, overwrite)
    for part, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            for name, value in component.state_dict().items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise PolyditError(f"{output}: not written, {part}.{name} holds NaN or infinity")
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        pipeline.save_pretrained(temporary)
        _forget_origin(temporary)
        for file in temporary.rglob("*.safetensors"):  # safetensors lets only their owner read them
            file.chmod((temporary / "model_index.json").stat().st_mode)
        if card is not None:
            card.write(temporary, output.name)
        if output.exists():
            old = output.with_name(f".{output.name}.old.partial")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(output, old)
            os.replace(temporary, output)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, output)
    except (OSError, SafetensorError) as error:  # the second is all that safetensors says of a full disk
        reason = getattr(error, "strerror", None) or str(error)
        raise PolyditError(f"{output}: cannot be written ({reason}); make room and export again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output
