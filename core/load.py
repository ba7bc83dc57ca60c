"""From a saved folder, or a hub id, to a pipeline that runs; with a clear line for everything that can be wrong.

The folder is the interface: ``model_index.json`` names the pipeline class and the import path of each component.
Nothing in a folder runs code of its own: classes come from PolyDiT, an installed task, diffusers or transformers, and
weights are safetensors.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PolyditError
from .task import TaskSpec, find_tasks, resolve

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

__all__ = ["PipelineIndex", "load", "locate", "read_index"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LIBRARIES = ("diffusers", "transformers")
SHAPES = re.compile(
    r"because (?P<name>\S+) expected shape (torch\.Size\()?(?P<expected>[^)]*?)\)?, "
    r"but got (torch\.Size\()?(?P<given>\[[^\]]*\])"
)
"""How diffusers says that a weight has another shape than the config gives it."""


@dataclass(frozen=True)
class PipelineIndex:
    """What the ``model_index.json`` of a folder says.

    Attributes:
        folder: where it lies.
        task: the task whose pipeline it is.
        pipeline: import path of the pipeline's class.
        components: the library and class of each component that is not empty.
    """

    folder: Path
    task: TaskSpec
    pipeline: str
    components: dict[str, tuple[str, str]]


def load(source: str | Path, *, task: str | None = None, **kwargs: Any) -> DiffusionPipeline:
    """Load a saved pipeline, whatever task it is of.

    Args:
        source: folder written by ``fit``, ``export`` or ``save_pretrained``, or a hub id such as ``"name/model"``.
        task: refuse pipelines of another task than this one, ``"super-resolution"``.
        **kwargs: passed on to ``DiffusionPipeline.from_pretrained``, for example ``dtype``.

    Returns:
        The pipeline, on the CPU.

    Raises:
        PolyditError: there is no such folder, it is something else than a pipeline of an installed task, files are
            missing or damaged, weights are pickled, do not fit the component, or hold NaN or infinity.
    """
    index = locate(source, task)
    pipeline_class = resolve(index.pipeline)
    for part, (library, class_name) in index.components.items():
        # diffusers takes other classes than its own only from modules that the caller imported. `read_index` has
        # refused every import path outside PolyDiT and the installed tasks.
        try:
            component_class = resolve(f"{library}:{class_name}")
        except PolyditError as error:
            raise PolyditError(
                f"{index.folder}: {part} is a {class_name} of {library}, which this version does not have ({error})"
            ) from error
        if library not in LIBRARIES:
            _name_loading_class(library, component_class)
    try:
        with _no_loading_bar():
            pipeline = pipeline_class.from_pretrained(
                str(index.folder),
                **{"local_files_only": True, "use_safetensors": True, "trust_remote_code": False, **kwargs},
            )
    except PolyditError:
        raise
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        if shapes := SHAPES.search(line):
            raise PolyditError(
                f"{index.folder}: weight {shapes['name']} is {shapes['given']}, and its config makes it "
                f"{shapes['expected']}; these are weights of another backbone or version"
            ) from error
        raise PolyditError(
            f"{index.folder}: cannot be loaded ({line[:300]}); it may be from another version, export it again"
        ) from error
    for name, component in pipeline.components.items():
        if _is_module(component):
            _check_weights(index.folder / name, name, component)
    return pipeline


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Without diffusers' bar over the components, which are few and quick."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _name_loading_class(library: str, component_class: type) -> None:
    """Give a module the name `ModelMixin`: diffusers looks among a module's names for a way to load its classes.

    Without it, a model could be loaded only if its module happened to import that name.
    """
    from diffusers import ModelMixin

    if isinstance(component_class, type) and issubclass(component_class, ModelMixin):
        vars(sys.modules[library]).setdefault("ModelMixin", ModelMixin)


def locate(source: str | Path, task: str | None = None) -> PipelineIndex:
    """Find a saved pipeline and check that it is complete, importing no torch.

    Raises:
        PolyditError: as `load`, for what can be seen without reading weights.
    """
    index = read_index(_folder(source))
    if task is not None and index.task.name != task:
        raise PolyditError(
            f"{index.folder}: these are weights of {index.task.name}, not of {task}; "
            f"use `polydit {index.task.name}`, or other --weights"
        )
    for name in index.components:
        _check_files(index.folder, name)
    return index


def read_index(folder: Path) -> PipelineIndex:
    """Read and check ``model_index.json``, importing no torch.

    Raises:
        PolyditError: the folder is not a saved pipeline of an installed task; the line says what it is.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        raise PolyditError(_describe_other(folder))
    entries = _read_json(file)
    name = str(entries.get("_class_name"))
    tasks, broken = find_tasks()
    owners = [task for task in tasks.values() if name in task.pipelines()]
    if not owners:
        failed = f" ({broken[0].name} cannot be loaded: {broken[0].reason})" if broken else ""
        raise PolyditError(
            f"{folder}: holds a {name}, which is no pipeline of an installed task{failed}; "
            "`polydit list` shows the tasks; a diffusers pipeline is loaded with diffusers"
        )
    roots = {task.pipeline.partition(".")[0] for task in tasks.values()} | {"polydit"}
    components: dict[str, tuple[str, str]] = {}
    for part, value in entries.items():
        if part.startswith("_") or not isinstance(value, list) or len(value) != 2 or value[0] is None:
            continue
        library, class_name = map(str, value)
        if library not in LIBRARIES and library.partition(".")[0] not in roots:
            raise PolyditError(
                f"{file}: {part} would be imported from {library}, which is neither PolyDiT nor an installed task; "
                "refused, as importing runs code"
            )
        components[part] = (library, class_name)
    return PipelineIndex(folder, owners[0], owners[0].pipelines()[name], components)


# -- where ---------------------------------------------------------------------------------------------------


def _folder(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise PolyditError(_describe_file(path))
    if isinstance(source, str) and re.fullmatch(r"[\w-]+/[\w.-]+", source):
        return _download(source)
    raise PolyditError(f"{source}: no such folder; give a folder with a model_index.json, or a hub id")


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # No pickles and no code, whatever else is there.
        return Path(
            snapshot_download(repository, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
        )
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise PolyditError(
            f"{repository}: no such folder here, and not to be had from the hub "
            f"({type(error).__name__}: {lines[0][:160] if lines else 'no message'})"
        ) from error


def _describe_file(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"{path}: a pickled checkpoint, which could run code; a folder of safetensors is needed: "
            f"`polydit <task> export --ckpt_path {path} --output DIR` writes one"
        )
    if path.suffix == ".safetensors":
        return (
            f"{path}: a single file of weights; give the pipeline's folder, or pass a LoRA file with --lora"
        )
    return f"{path}: a file, and a folder with a model_index.json is needed"


def _describe_other(folder: Path) -> str:
    """What a folder without ``model_index.json`` is, and what to do."""
    inner = sorted(folder.glob("*/model_index.json")) + sorted(folder.glob("*/*/model_index.json"))
    if inner:
        return f"{folder}: not a saved pipeline, but {inner[0].parent} is one; give that folder"
    config = folder / "config.json"
    if config.is_file():
        name = _read_json(config).get("_class_name", "model")
        return f"{folder}: a saved {name} alone, not a pipeline; train from it with --model.init_weights, then export"
    checkpoints = sorted(folder.glob("*.ckpt")) + sorted(folder.glob("checkpoints/*.ckpt"))
    if checkpoints:
        return (
            f"{folder}: holds training checkpoints; "
            f"`polydit <task> export --ckpt_path {checkpoints[0]} --output DIR` makes a pipeline of one"
        )
    return f"{folder}: holds no model_index.json, so it is no saved pipeline; `polydit list` shows the weights at hand"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise PolyditError(f"{file}: cannot be read as JSON ({error}); get the folder again") from error
    if not isinstance(content, dict):
        raise PolyditError(f"{file}: not a JSON object; get the folder again")
    return content


# -- weights -------------------------------------------------------------------------------------------------


def _check_files(folder: Path, name: str) -> None:
    """Everything that a component needs is there and readable."""
    part = folder / name
    if not part.is_dir():
        raise PolyditError(f"{part}: missing; {folder} is incomplete, get it again")
    if not (part / "config.json").is_file():
        return  # a scheduler, a tokenizer
    for index in part.glob("*.safetensors.index.json"):
        for shard in sorted(set(_read_json(index).get("weight_map", {}).values())):
            if not (part / shard).is_file():
                raise PolyditError(f"{part / shard}: missing; {folder} is incomplete, get it again")
    files = _safetensors(part)
    if not files:
        pickles = sorted(file for file in part.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise PolyditError(
                f"{pickles[0]}: pickled weights, which could run code, are refused; "
                "get the safetensors version, or convert it where you trust it"
            )
        raise PolyditError(f"{part}: holds no *.safetensors; {folder} is incomplete, get it again")
    for file in files:
        for _ in _names(file):
            pass


def _safetensors(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors"))


def _names(file: Path) -> Iterator[str]:
    """Names of the tensors of a file; the header is checked against the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as content:
            yield from content.keys()
    except (SafetensorError, OSError) as error:
        raise PolyditError(f"{file}: damaged ({error}); get the file again") from error


def _is_module(component: Any) -> bool:
    import torch

    return isinstance(component, torch.nn.Module)


def _check_weights(part: Path, name: str, module: torch.nn.Module) -> None:
    """Every weight was in a file, and is finite.

    ``from_pretrained`` fills what is missing with random values and says so only in a log.
    """
    # Adapters that a pipeline attached by itself, from files of its own, are not in the file of their base.
    state = {
        tensor.replace(".base_layer.", "."): value
        for tensor, value in module.state_dict().items()
        if ".lora_" not in tensor
    }
    where = {tensor: file for file in _safetensors(part) for tensor in _names(file)}
    if type(module).__module__.partition(".")[0] != "transformers":  # those leave out weights that are tied
        missing, unexpected = sorted(state.keys() - where.keys()), sorted(where.keys() - state.keys())
        for problem, names in (("lacks", missing), ("has unknown", unexpected)):
            if names:
                raise PolyditError(
                    f"{part}: {problem} {len(names)} weights of {type(module).__name__} ({', '.join(names[:3])}); "
                    "these are weights of another backbone or version"
                )
    for tensor, value in state.items():
        if value.is_floating_point() and not _is_finite(value):
            file = where.get(tensor, part)
            raise PolyditError(f"{file}: weight {tensor} of {name} holds NaN or infinity; use other weights")


def _is_finite(value: torch.Tensor) -> bool:
    import torch

    # NaN and infinity survive a sum, which is ten times faster than looking at each; a sum may also overflow.
    return bool(torch.isfinite(value.sum(dtype=torch.float32)) or torch.isfinite(value).all())
