"""``fit``, ``validate``, ``test`` and ``export``: the way to the training part, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from ..errors import PolyditError
from ..task import TaskSpec, nearest
from .parser import Parser

__all__ = ["find_config", "run_export", "run_lightning"]


def run_lightning(task: TaskSpec, subcommand: str, words: Sequence[str]) -> int:
    """Hand over to Lightning's command line, with the config file found by its name too."""
    words = [word for word in words if word != "--debug"]
    for number, word in enumerate(words):
        if word in ("--config", "-c") and number + 1 < len(words):
            words[number + 1] = str(find_config(task, words[number + 1]))
        elif word.startswith("--config="):
            words[number] = f"--config={find_config(task, word.partition('=')[2])}"
    from ..training.cli import run

    run(task, cast(Literal["fit", "validate", "test"], subcommand), words)
    return 0


def find_config(task: TaskSpec, name: str) -> Path:
    """The config file `name`: a path, or the name of a shipped one.

    Raises:
        PolyditError: there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = {file.name: file for file in task.config_folder().glob("*.yaml")}
    for candidate in (path.name, f"{path.name}.yaml"):
        # "configs/super_resolution/small.yaml" also from a folder where there is no configs/.
        if candidate in shipped and path.parts[:-1] in ((), (task.package,), ("configs", task.package)):
            return shipped[candidate]
    raise PolyditError(
        f"--config {name}: no such file{nearest(path.name, shipped)}; shipped with {task.name} are "
        f"{', '.join(sorted(shipped)) or 'none'}"
    )


def run_export(task: TaskSpec, words: Sequence[str]) -> int:
    """``polydit <task> export``: a checkpoint as pipeline folder or LoRA file."""
    parser = Parser(
        f"polydit {task.name} export",
        "Write what predict, the demo and a script load: a pipeline folder, or a LoRA file.",
    )
    parser.add_argument(
        "--ckpt_path", required=True, type=Path, metavar="FILE", help="checkpoint written by fit"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="PATH", help="folder, or file.safetensors for LoRA"
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
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    options = parser.parse_args(words)
    if not options.ckpt_path.is_file():
        raise PolyditError(
            f"--ckpt_path {options.ckpt_path}: no such file; `fit` writes runs/*/*/checkpoints/last.ckpt"
        )
    from ..training.cli import quiet
    from ..training.export import export

    quiet()
    path = export(
        task,
        options.ckpt_path,
        options.output,
        options.what,
        layout=options.layout,
        weights=options.weights,
        dtype=options.dtype,
        overwrite=options.overwrite,
    )
    print(path)
    return 0
