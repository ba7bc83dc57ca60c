"""``polydit <task> export``: what was trained as a folder or file that others can use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import PolyditError
from ..task import TaskSpec
from .parser import Parser

__all__ = ["run_export"]


def run_export(task: TaskSpec, words: Sequence[str]) -> int:
    """Write a pipeline folder with its card, a LoRA file, or an ONNX file."""
    parser = Parser(
        f"polydit {task.name} export",
        "Write what predict, the demo and a script load: a pipeline folder with its model card, a LoRA file, or an "
        "ONNX file.",
    )
    source = parser.add_argument_group("from one of")
    source.add_argument("--ckpt_path", type=Path, metavar="FILE", help="checkpoint written by fit")
    source.add_argument(
        "--pipeline",
        type=Path,
        metavar="DIR",
        help="pipeline folder, to complete its card or change its format",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PATH",
        help="folder, or file.safetensors for LoRA, file.onnx for ONNX",
    )
    parser.add_argument(
        "--what",
        choices=("pipeline", "lora"),
        help="pipeline merges a LoRA into its base; default: what was trained",
    )
    parser.add_argument(
        "--layout",
        choices=("diffusers", "kohya", "comfyui"),
        help="of a LoRA file; default: diffusers, which PEFT reads too",
    )
    parser.add_argument(
        "--format",
        choices=("diffusers", "onnx"),
        default="diffusers",
        help="of a pipeline; onnx writes its transformer, compared in onnxruntime",
    )
    parser.add_argument(
        "--weights",
        choices=("average", "raw"),
        default="average",
        help="the average of the weights, or the last step's",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of a pipeline's files; bfloat16 is half the size",
    )
    card = parser.add_argument_group(
        "model card; a pipeline needs the first two, here or in the config under card"
    )
    card.add_argument("--license", metavar="NAME", help="of the weights, such as apache-2.0 or cc-by-nc-4.0")
    card.add_argument(
        "--data-source", metavar="TEXT", help="what it was trained on, and where that comes from"
    )
    card.add_argument(
        "--figures", type=Path, metavar="FILE", help="JSON of measured values, as evaluate writes it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    options = parser.parse_args(words)
    if (options.ckpt_path is None) == (options.pipeline is None):
        raise PolyditError(
            "--ckpt_path: required (or --pipeline DIR, one of the two); `fit` writes runs/*/*/checkpoints/last.ckpt"
        )
    if options.ckpt_path is not None and not options.ckpt_path.is_file():
        raise PolyditError(
            f"--ckpt_path {options.ckpt_path}: no such file; `fit` writes runs/*/*/checkpoints/last.ckpt"
        )
    for option in ("what", "layout") if options.pipeline is not None else ():
        if getattr(options, option) is not None:
            raise PolyditError(f"--{option}: a pipeline folder has no LoRA to choose; leave it out")
    from ..training.card import CardOptions, read_figures
    from ..training.cli import quiet
    from ..training.export import export, export_pipeline

    quiet()
    figures = read_figures(options.figures) if options.figures is not None else None
    told = CardOptions(options.data_source, options.license)
    if options.pipeline is not None:
        path = export_pipeline(
            task,
            options.pipeline,
            options.output,
            dtype=options.dtype,
            format=options.format,
            card=told,
            figures=figures,
            overwrite=options.overwrite,
        )
    else:
        path = export(
            task,
            options.ckpt_path,
            options.output,
            options.what,
            layout=options.layout,
            weights=options.weights,
            dtype=options.dtype,
            format=options.format,
            card=told,
            figures=figures,
            may_lack=False,
            overwrite=options.overwrite,
        )
    print(path)
    return 0
