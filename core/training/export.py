"""From a training checkpoint to what people use: a pipeline folder, or a LoRA file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from ..adapters import bake, save_lora
from ..errors import PolyditError
from .checkpoints import read_checkpoint

if TYPE_CHECKING:
    from ..task import TaskSpec
    from .module import DiffusionModule

__all__ = ["export", "load_module", "save_pipeline"]


def load_module(
    spec: TaskSpec, ckpt_path: str | Path, weights: Literal["average", "raw"] = "average"
) -> DiffusionModule:
    """The module of a checkpoint, on the CPU in eval mode, with the settings it was trained with.

    Args:
        spec: The task.
        ckpt_path: Written by ``fit``.
        weights: The average of the weights, or the weights of the last step.

    Raises:
        PolyditError: the checkpoint is unreadable or of another task.
    """
    from .config import instantiate

    checkpoint = read_checkpoint(ckpt_path)
    record = checkpoint["polydit"]
    if record.get("task") != spec.name:
        raise PolyditError(
            f"{ckpt_path}: trained for {record.get('task')}, not {spec.name}; use `polydit {record.get('task')} export`"
        )
    config = record["config"]
    if config["model"].get("adapter"):
        config["model"]["adapter"]["init_from"] = None  # the checkpoint is further than that
    else:
        config["model"]["init_weights"] = None  # all of them are in the checkpoint
    module = instantiate(spec, config)
    module.prepare()
    module.on_load_checkpoint(checkpoint)
    state = checkpoint["state_dict"]
    if weights == "raw":
        state = {**state, **checkpoint.get("current_model_state", {})}
    module.load_state_dict(state, strict=False)
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
        overwrite: Replace what is there.

    Returns:
        The folder or file.

    Raises:
        PolyditError: the output exists, the checkpoint is unreadable, or it holds no adapter.
    """
    output = Path(output)
    module = load_module(spec, ckpt_path, weights)
    has_adapter = module.adapter_options is not None
    if what is None:
        what = "lora" if has_adapter else "pipeline"
    if what == "lora":
        if not has_adapter:
            raise PolyditError(f"{ckpt_path}: was trained without an adapter; export a pipeline instead")
        path = output if output.suffix == ".safetensors" else output / "lora.safetensors"
        return save_lora(
            module.backbone,
            path,
            layout=layout or "diffusers",
            metadata={"task": spec.name},
            overwrite=overwrite,
        )
    if layout is not None:
        raise PolyditError("--layout: a pipeline has none; leave it out, or ask for --what lora")
    if has_adapter:
        bake(module.backbone)
    pipeline = module.build_pipeline()
    if dtype == "bfloat16":
        pipeline.to(torch.bfloat16)
    return save_pipeline(pipeline, output, overwrite=overwrite)


def save_pipeline(pipeline: Any, output: str | Path, *, overwrite: bool = False) -> Path:
    """Save a pipeline to a temporary folder, then rename it.

    Raises:
        PolyditError: the folder exists, weights are not finite, or the disk is full.
    """
    output = Path(output)
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise PolyditError(f"{output}: exists already; choose another name or pass --overwrite")
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
        for file in temporary.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes files that only their owner may read
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
