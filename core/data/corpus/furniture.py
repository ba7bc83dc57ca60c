"""Furniture catalogues of Sweet Home 3D (.sh3f): a zip file with a property list, icons and OBJ models."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

__all__ = ["Model", "read_catalogue"]

_CATALOGUE = "PluginFurnitureCatalog.properties"


@dataclass(frozen=True)
class Model:
    """One piece of furniture.

    Attributes:
        name: English name, such as ``Washbasin``.
        category: English category.
        slug: unique name within the catalogue, fit for a folder.
        obj: path of the OBJ file inside the catalogue.
        files: content of every file of the model by path relative to the OBJ file's folder.
        size: width, depth, height in centimetres.
        creator: who made it, or an empty string.
    """

    name: str
    category: str
    slug: str
    obj: str
    files: dict[str, bytes] = field(repr=False)
    size: tuple[float, float, float]
    creator: str


def _properties(text: str) -> dict[str, str]:
    text = re.sub(r"\\\r?\n[ \t]*", "", text)
    unescape = re.compile(r"\\u([0-9a-fA-F]{4})")
    pairs: dict[str, str] = {}
    for line in text.splitlines():
        if (line := line.strip()) and line[0] not in "#!":
            key, _, value = line.partition("=")
            pairs[key.strip()] = unescape.sub(lambda m: chr(int(m[1], 16)), value.strip())
    return pairs


def read_catalogue(members: dict[str, bytes]) -> list[Model]:
    """Read the OBJ models of a catalogue.

    Args:
        members: content of the catalogue's files by path inside it.

    Returns:
        the models whose OBJ file is there, in the catalogue's order.
    """
    pairs = _properties(members.get(_CATALOGUE, b"").decode("latin-1"))
    numbers = sorted({int(key.partition("#")[2]) for key in pairs if re.fullmatch(r"model#\d+", key)})
    models, seen = [], set()
    for number in numbers:
        obj = pairs[f"model#{number}"].lstrip("/")
        if obj not in members or not obj.lower().endswith(".obj"):
            continue
        folder = str(PurePosixPath(obj).parent)
        own_folder = folder.count("/") >= 1
        stem = PurePosixPath(obj).stem
        files = {
            path[len(folder) + 1 :]: content
            for path, content in members.items()
            if path.startswith(folder + "/")
            # A model that lies beside others takes only its own materials.
            and (own_folder or PurePosixPath(path).stem == stem)
        }
        slug = (
            re.sub(r"[^A-Za-z0-9]+", "-", folder.rpartition("/")[2] if own_folder else stem)
            .strip("-")
            .lower()
        )
        while slug in seen:
            slug += "-b"
        seen.add(slug)
        sides = tuple(float(pairs.get(f"{side}#{number}", 0) or 0) for side in ("width", "depth", "height"))
        models.append(
            Model(
                name=pairs.get(f"name#{number}", stem),
                category=pairs.get(f"category#{number}", ""),
                slug=slug,
                obj=obj[len(folder) + 1 :],
                files=files,
                size=(sides[0], sides[1], sides[2]),
                creator=pairs.get(f"creator#{number}", ""),
            )
        )
    return models
