"""Where shapes come from: procedural families, the corpus's furniture, folders of meshes, ShapeNet, Objaverse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ...core.errors import PolyditError
from ...core.geometry.mesh import Mesh
from ...core.geometry.primitives import Union
from ...core.geometry.reading import MESH_SUFFIXES, SIDE, Up, read_mesh
from ...core.geometry.solids import Solid, solid_of
from .procedural import FAMILIES, make_shape

__all__ = [
    "LAYOUTS",
    "SYNSETS",
    "MeshShape",
    "ProceduralShape",
    "Shape",
    "check_up",
    "corpus_shapes",
    "find_shapes",
    "other_shapes",
    "procedural_shapes",
    "readable",
    "with_variations",
]

Array = NDArray[Any]
SPLITS = ("train", "val", "test", "reserved")
SYNSETS = {
    "02691156": "plane",
    "02747177": "bin",
    "02818832": "bed",
    "02828884": "bench",
    "02871439": "bookshelf",
    "02924116": "bus",
    "02933112": "cabinet",
    "02958343": "car",
    "03001627": "chair",
    "03211117": "display",
    "03636649": "lamp",
    "03691459": "speaker",
    "04256520": "sofa",
    "04379243": "table",
    "04530566": "vessel",
}
"""ShapeNet's folders by what lies in them."""
WORDS = {
    "chair": ("chair", "stool"),
    "table": ("table", "desk"),
    "lamp": ("lamp", "light"),
    "sofa": ("sofa", "couch"),
    "bed": ("bed",),
    "cabinet": ("cabinet", "bookcase", "shelves", "wardrobe", "drawers"),
}
"""Categories of the corpus's furniture by words of its names."""
NOT = (
    "desk lamp",
    "table lamp",
    "table fan",
    "table football",
    "pool table light",
    "bedside lamp",
    "lamppost",
)
OWN = {
    "desk lamp": "lamp",
    "table lamp": "lamp",
    "bedside lamp": "lamp",
    "lamppost": "lamp",
    "bedside table": "table",
}


class Shape(Protocol):
    """A solid in [-1, 1]^3, Y-up, its longest side 1.9."""

    name: str
    category: str

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Points (count, 3) spread evenly over the surface, and normals."""

    def distance(self, points: Array) -> Array:
        """Signed distances (N,) at points (N, 3), negative inside."""

    def mesh(self, resolution: int = 96) -> Mesh:
        """A watertight surface."""


@dataclass(frozen=True)
class ProceduralShape:
    """Shape ``number`` of a family, made when it is asked for."""

    category: str
    number: int
    held_out: bool = False

    @property
    def name(self) -> str:
        """Such as ``chair-12``."""
        return f"{self.category}-{'held-out-' * self.held_out}{self.number}"

    @cached_property
    def union(self) -> Union:
        """The parts."""
        return make_shape(self.category, self.number, self.held_out)

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:  # noqa: D102
        return self.union.sample(count, generator)

    def distance(self, points: Array) -> Array:  # noqa: D102
        return self.union.distance(points)

    def mesh(self, resolution: int = 96) -> Mesh:  # noqa: D102
        return self.union.mesh(resolution)


@dataclass(frozen=True)
class MeshShape:
    """A mesh file; what it encloses is worked out when it is first asked for.

    Attributes:
        file: any format that trimesh reads.
        category: its class.
        up: see :func:`polydit.core.geometry.reading.read_mesh`.
        resolution: cells per axis of its solid.
        variation: 0 is the shape of the file. Each other number stretches it along its three axes, by up to a third
            either way, and turns every other one around the upward axis, by one to three quarters.
    """

    file: Path
    category: str
    up: Up = "auto"
    resolution: int = 96
    variation: int = 0

    @property
    def name(self) -> str:
        """Of its folder and file."""
        return f"{self.file.parent.name}/{self.file.stem}" + f"~{self.variation}" * bool(self.variation)

    @cached_property
    def solid(self) -> Solid:
        """What the file encloses."""
        read = read_mesh(self.file, self.up)
        vars(self)["notes"] = read.notes
        return solid_of(self._varied(read.mesh), self.resolution)

    def _varied(self, mesh: Mesh) -> Mesh:
        if not self.variation:
            return mesh
        digest = hashlib.sha256(self.name.encode()).digest()
        draw = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        stretched = Mesh(mesh.vertices * np.exp(draw.uniform(-0.29, 0.29, 3)), mesh.faces)
        quarters = int(draw.integers(1, 4)) if self.variation % 2 == 0 else 0
        cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
        return stretched.turned(np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]], float)).fitted(
            SIDE
        )

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was repaired, scaled or turned; known once it was read."""
        return ()

    @cached_property
    def surface(self) -> Mesh:
        """Watertight."""
        surface = self.solid.mesh().without_floaters(0.002)
        if surface.is_empty:
            raise PolyditError(f"{self.file}: encloses nothing; leave it out")
        return surface

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:  # noqa: D102
        return self.surface.sample(count, generator)

    def distance(self, points: Array) -> Array:  # noqa: D102
        return self.solid.distance(points)

    def mesh(self, resolution: int = 96) -> Mesh:  # noqa: D102
        return self.surface


def procedural_shapes(categories: Sequence[str], count: int, held_out: bool = False) -> list[Shape]:
    """The first ``count`` shapes of each family; held-out ones are others."""
    return [ProceduralShape(c, n, held_out) for n in range(count) for c in categories if c in FAMILIES]


def corpus_shapes(root: Path, split: str, categories: Sequence[str]) -> list[Shape]:
    """Furniture of a corpus, by category.

    Raises:
        PolyditError: there is no corpus.
    """
    return [shape for shape in _furniture(root, split) if shape.category in categories]


def other_shapes(root: Path, split: str, categories: Sequence[str]) -> list[Shape]:
    """What a corpus has beside the furniture of these categories, each of the category ``""``.

    Raises:
        PolyditError: there is no corpus.
    """
    return [
        replace(shape, category="") for shape in _furniture(root, split) if shape.category not in categories
    ]


def _furniture(root: Path, split: str) -> list[MeshShape]:
    from ...core.data.corpus.manifest import load_manifest

    return [
        MeshShape(root / record.file, furniture_category(str(record.extra.get("name", ""))) or "", up="y")
        for record in load_manifest(root)
        if record.kind == "meshes" and record.split == split
    ]


def with_variations(shapes: Sequence[Shape], count: int) -> list[Shape]:
    """The shapes, and after them so many variations of each that is a mesh."""
    meshes = [shape for shape in shapes if isinstance(shape, MeshShape)]
    return [*shapes, *(replace(shape, variation=n) for shape in meshes for n in range(1, count + 1))]


def furniture_category(name: str) -> str | None:
    """The category of a piece of furniture by its name, or None."""
    name = name.lower()
    for phrase, category in OWN.items():
        if phrase in name:
            return category
    if any(phrase in name for phrase in NOT):
        return None
    words = name.replace("-", " ").split()
    for category, known in WORDS.items():
        if any(word.endswith(known) for word in words):
            return category
    return None


def split_by_name(name: str) -> str:
    """``val`` for one name in twelve, ``test`` for another one, else ``train``; a pure function of the name."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 12
    return {0: "val", 1: "test"}.get(share, "train")


def mesh_folder(root: Path, split: str, categories: Sequence[str]) -> list[Shape]:
    """``<category>/*.glb`` and deeper, or ``<split>/<category>/...``."""
    if (root / split).is_dir():
        return _in_folders(root / split, categories, None)
    return _in_folders(root, categories, split)


def _in_folders(root: Path, categories: Sequence[str], split: str | None) -> list[Shape]:
    found: list[Shape] = []
    for category in categories:
        for file in sorted((root / category).rglob("*")):
            if file.suffix.lower() in MESH_SUFFIXES and (split is None or split_by_name(file.stem) == split):
                found.append(MeshShape(file, category))
    return found


def shapenet(root: Path, split: str, categories: Sequence[str]) -> list[Shape]:
    """ShapeNetCore.v2: ``<synset>/<model>/models/model_normalized.obj``.

    A list ``<synset>/<split>.lst`` of models, where there is one, says what the split holds.
    """
    found: list[Shape] = []
    for synset, category in SYNSETS.items():
        if category not in categories or not (root / synset).is_dir():
            continue
        listed = root / synset / f"{split}.lst"
        names = listed.read_text().split() if listed.is_file() else None
        for folder in sorted((root / synset).iterdir()):
            file = folder / "models" / "model_normalized.obj"
            chosen = folder.name in names if names is not None else split_by_name(folder.name) == split
            if chosen and file.is_file():
                found.append(MeshShape(file, category, up="y"))
    return found


def objaverse(root: Path, split: str, categories: Sequence[str]) -> list[Shape]:
    """Objaverse's cache, ``glbs/000-xxx/<uid>.glb``; all of the first category."""
    files = sorted((root / "glbs").glob("*/*.glb"))
    return [MeshShape(file, categories[0]) for file in files if split_by_name(file.stem) == split]


LAYOUTS: dict[str, Callable[[Path, str, Sequence[str]], list[Shape]]] = {
    "corpus": corpus_shapes,
    "meshes": mesh_folder,
    "shapenet": shapenet,
    "objaverse": objaverse,
}


def check_up(up: str, layout: str, option: str = "--data.") -> None:
    """Refuse an upward axis that is none, or that nothing asks for.

    Args:
        up: ``auto``, ``y`` or ``z``.
        layout: of :data:`LAYOUTS`, or one without meshes.
        option: what stands before the names of the options in the command or the config.

    Raises:
        PolyditError: it is unknown, or the layout has no meshes.
    """
    if up not in get_args(Up):
        raise PolyditError(f"{option}up {up}: is unknown; choose from {', '.join(get_args(Up))}")
    if up != "auto" and layout not in LAYOUTS:
        raise PolyditError(
            f"{option}up {up}: is for mesh files, and the layout {layout} has none; leave it out"
        )


def find_shapes(
    layout: str,
    root: str | Path,
    split: str,
    categories: Sequence[str],
    up: Up = "auto",
    option: str = "--data.",
) -> list[Shape]:
    """The shapes of a part of some data.

    Args:
        layout: of :data:`LAYOUTS`.
        root: its folder.
        split: ``train``, ``val``, ``test``; ``reserved`` of a corpus, for evaluation only.
        categories: which.
        up: the upward axis of all files; ``auto`` is y for the corpus and ShapeNet, and for others what
            :func:`polydit.core.geometry.reading.read_mesh` takes it for.
        option: what stands before ``path`` and the like in the command or the config, for messages.

    Raises:
        PolyditError: an option is unknown, the folder is missing, or holds nothing of these categories.
    """
    if layout not in LAYOUTS:
        raise PolyditError(f"{option}layout {layout}: is unknown; choose from {', '.join(LAYOUTS)}")
    if split not in SPLITS:
        raise PolyditError(f"split {split!r}: choose from {', '.join(SPLITS)}")
    check_up(up, layout, option)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise PolyditError(f"{option}path {root}: no such folder; give the data set's")
    found = LAYOUTS[layout](root, split, categories)
    if not found and split in ("train", "reserved"):
        inside = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8])
        raise PolyditError(
            f"{option}path {root}: nothing of {', '.join(categories)} for {split} in the layout {layout}; "
            f"it holds {inside or 'no folders'}"
        )
    if up == "auto":
        return found
    return [replace(shape, up=up) if isinstance(shape, MeshShape) else shape for shape in found]


def readable(shapes: Sequence[Shape], say: Callable[[str], None]) -> list[Shape]:
    """The shapes that can be used; of each other one its reason is told, and what was done to them.

    Files that were scaled and nothing else, as most are, are told by their number.
    """
    kept, scaled = [], 0
    for shape in shapes:
        try:
            shape.sample(1, np.random.default_rng(0))
        except PolyditError as error:
            say(f"left out: {error}")
            continue
        kept.append(shape)
        if not isinstance(shape, MeshShape):
            continue
        if any(not note.startswith("scaled:") for note in shape.notes):
            say(f"{shape.file}: {'; '.join(shape.notes)}")
        else:
            scaled += bool(shape.notes)
    if scaled:
        say(f"meshes: {scaled} scaled, to a longest side of {SIDE:g}")
    return kept
