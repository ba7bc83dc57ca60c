"""What a task is to the command line: names, options and import paths, without importing any of them.

Everything here is plain data and the standard library, so that ``polydit --help`` and ``predict --help`` answer at
once. A task is found by its entry point in the group ``polydit.tasks``, and so are tasks that other people publish.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .errors import PolyditError

__all__ = [
    "GROUP",
    "BrokenTask",
    "Command",
    "Option",
    "System",
    "TaskSpec",
    "find_task",
    "find_tasks",
    "nearest",
    "package_root",
    "resolve",
]

GROUP = "polydit.tasks"
"""The entry point group in which tasks register."""


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        flag: with its dashes, ``"--scale"``; without dashes it is a positional argument.
        type: how the text is read. ``bool`` gives ``--flag`` and ``--no-flag``.
        default: the value when the option is not given.
        help: one sentence. The default is appended by the command line.
        choices: the only values allowed, of the type.
        metavar: how the value is called in the help.
        minimum: the smallest value allowed, for numbers.
        maximum: the greatest value allowed, likewise.
        many: one or several values follow; the value is a list.
    """

    flag: str
    type: Literal["int", "float", "str", "path", "bool"]
    default: Any
    help: str
    choices: tuple[Any, ...] | None = None
    metavar: str | None = None
    minimum: float | None = None
    many: bool = False
    maximum: float | None = None

    @property
    def dest(self) -> str:
        """The name of the value in the parsed namespace."""
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class System:
    """A published system that a task implements.

    Attributes:
        name: as the field calls it, ``"DiT4SR"``.
        title: of the paper.
        arxiv: its number, or ``None`` where there is none or it is not known.
        config: file name in ``configs/<task>/``.
        note: what a user should know before choosing it, in a few words.
        weights: folder, relative to the task's distribution root, of its weights where some came with the task.
        pipeline: import path of its own pipeline class, where it is another than the task's.
        opens: names of diffusers' own pipeline classes whose folders that class opens as they are.
    """

    name: str
    title: str
    arxiv: str | None
    config: str
    note: str = ""
    weights: str | None = None
    pipeline: str | None = None
    opens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A further command of a task, such as ``compression encode``.

    Attributes:
        name: the word on the command line.
        help: one line.
        run: import path ``"module:function"``; called with the parsed namespace, returns an exit code or ``None``.
        options: what it takes.
    """

    name: str
    help: str
    run: str
    options: tuple[Option, ...] = ()


@dataclass(frozen=True)
class TaskSpec:
    """A task as the command line sees it. Import paths are ``"module:attribute"`` and are imported on use.

    Attributes:
        name: the word on the command line, ``"super-resolution"``.
        package: the folder, ``"super_resolution"``.
        summary: one line.
        systems: the published systems it implements.
        module: the LightningModule.
        datamodule: the LightningDataModule.
        pipeline: the ``DiffusionPipeline``; `polydit.load` finds it by its class name.
        predict: the function that handles one input (see `polydit.core.predict`).
        demo: the function that builds the web demo.
        default_weights: folder, relative to the task's distribution root, of the weights that ``predict`` takes.
        default_config: file name in ``configs/<task>/`` that ``fit`` takes when none is given.
        predict_options: what ``predict`` takes beside the common options.
        input_kinds: what ``--input`` may be, ``"image"`` and/or ``"video"``, or suffixes such as ``".glb"``.
        outputs: patterns of what ``predict`` writes for one input; ``{stem}`` and the names of the options are
            filled in (``{mask_stem}`` where an option ``--mask`` is a path), and ``.*`` is any one suffix. By kind of
            input, where kinds give different files. An input with a match in the output folder is kept unless
            ``--overwrite``.
        commands: further commands.
        input_flag: another name of ``--input``, which fits what the task takes: ``"--person"``.
        subject: an option that takes the place of an input, such as ``--category``: what it names is made from nothing,
            and results begin with that name. Its kind, for `outputs`, is the first one.
        table: an option that names a CSV file with a row for each result: the input, and what differs of the options.
        subclass_mode: its systems have modules and data modules of their own: `module` and `datamodule` are what these
            subclass, and a config names them by ``class_path`` and ``init_args``.
    """

    name: str
    package: str
    summary: str
    systems: tuple[System, ...]
    module: str
    datamodule: str
    pipeline: str
    predict: str
    demo: str | None
    default_weights: str | None
    default_config: str | None
    predict_options: tuple[Option, ...] = ()
    input_kinds: tuple[str, ...] = ("image",)
    outputs: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ("{stem}.*",)
    commands: tuple[Command, ...] = field(default=())
    input_flag: str = "--input"
    table: str | None = None
    subject: str | None = None
    subclass_mode: bool = False

    def outputs_of(self, source: Path) -> tuple[str, ...]:
        """The patterns of `outputs` for the kind of `source`, by its suffix; an unknown one is of the first kind."""
        if not isinstance(self.outputs, Mapping):
            return self.outputs
        from .inputs import SUFFIXES

        suffix = source.suffix.lower()
        kind = next((kind for kind in self.outputs if suffix in SUFFIXES.get(kind, (kind,))), None)
        return self.outputs[kind or next(iter(self.outputs))]

    def root(self) -> Path:
        """Folder of the top-level package that the task comes in, found without importing it."""
        return package_root(self.module.partition(":")[0].partition(".")[0])

    def pipelines(self) -> dict[str, str]:
        """Import paths of the pipeline classes by the names that a folder may have, foreign ones included."""
        paths = [self.pipeline, *(entry.pipeline for entry in self.systems if entry.pipeline)]
        foreign = {name: entry.pipeline or self.pipeline for entry in self.systems for name in entry.opens}
        return {**{path.partition(":")[2]: path for path in paths}, **foreign}

    def config_folder(self) -> Path:
        """``configs/<package>`` of the distribution that the task comes in."""
        return self.root() / "configs" / self.package

    def weights_folder(self, system: str | None = None) -> Path | None:
        """The folder of a system's weights, by default of the default ones, whether or not it exists.

        Raises:
            PolyditError: there is no such system, or it comes without weights.
        """
        if system is None:
            return self.root() / self.default_weights if self.default_weights else None
        weights = {entry.name: entry.weights for entry in self.systems if entry.weights}
        if system not in weights:
            raise PolyditError(
                f"--system {system}: {self.name} has no weights of it{nearest(system, weights)}; choose one of "
                f"{', '.join(weights) or 'none'}, or give a folder with --weights"
            )
        return self.root() / weights[system]

    def weights_at_hand(self) -> list[Path]:
        """Folders of saved pipelines that came with the task."""
        shipped = self.root() / "demos" / "weights"
        found = {path.parent for path in shipped.glob(f"{self.package}*/model_index.json")}
        default = self.weights_folder()
        if default is not None and (default / "model_index.json").is_file():
            found.add(default)
        return sorted(found)


@dataclass(frozen=True)
class BrokenTask:
    """An entry point that does not give a task; `reason` is one line."""

    name: str
    origin: str
    reason: str


def package_root(package: str) -> Path:
    """Folder of the top-level package `package`, without importing it.

    Raises:
        PolyditError: if there is no such package.
    """
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not locations:
        raise PolyditError(
            f"{package}: no such package is installed; install the distribution that the task comes in"
        )
    return Path(locations[0])


def resolve(path: str) -> Any:
    """The object that ``"module:attribute"`` names.

    Raises:
        PolyditError: if the module or the attribute does not exist. An import error inside the module passes through.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise PolyditError(
                f"{path}: there is no module {error.name}; is the task's distribution complete?"
            ) from error
        raise
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise PolyditError(f"{path}: module {module_name} has no {attribute!r}") from error


def find_tasks() -> tuple[dict[str, TaskSpec], list[BrokenTask]]:
    """Every registered task by name, and every entry point that gives none."""
    tasks: dict[str, TaskSpec] = {}
    broken: list[BrokenTask] = []
    for point in sorted(_entry_points(), key=lambda point: point.name):
        task = _load(point)
        if isinstance(task, BrokenTask):
            broken.append(task)
        else:
            tasks[task.name] = task
    return tasks, broken


def find_task(name: str) -> TaskSpec:
    """The task called `name`, loading no other task.

    Raises:
        PolyditError: if no such task is registered (the nearest name is given), or it cannot be loaded.
    """
    points = {point.name: point for point in _entry_points()}
    if name not in points:
        raise PolyditError(f"{name}: no such task{nearest(name, points)}; `polydit list` shows them")
    task = _load(points[name])
    if isinstance(task, BrokenTask):
        raise PolyditError(f"{task.name}: the task from {task.origin} cannot be loaded: {task.reason}")
    return task


def nearest(word: str, words: Iterable[str]) -> str:
    """``" (did you mean X?)"`` for the word of `words` closest to `word`, or nothing when none is close."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def _entry_points() -> list[metadata.EntryPoint]:
    """One entry point per name; the first on the import path wins, as for modules."""
    unique: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=GROUP):
        unique.setdefault(point.name, point)
    return list(unique.values())


def _load(point: metadata.EntryPoint) -> TaskSpec | BrokenTask:
    origin = point.dist.name if point.dist is not None else point.value
    try:
        task = point.load()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return BrokenTask(
            point.name, origin, f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        )
    if not isinstance(task, TaskSpec):
        return BrokenTask(point.name, origin, f"{point.value} is a {type(task).__name__}, not a TaskSpec")
    if task.name != point.name:
        return BrokenTask(
            point.name, origin, f"{point.value} calls itself {task.name!r}; the names must be equal"
        )
    return task
