"""From one package to candidates: which files are material, how they are stored, which are the same picture."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from .archives import expand, is_archive
from .debian import Deb
from .furniture import Model, read_catalogue
from .illustrations import encode, take_apart
from .npm import Tarball
from .pictures import (
    MAX_FLAT,
    MIN_DETAIL,
    PHOTO_FLAT,
    encode_photo,
    group_of,
    look,
    near_duplicate,
    opaque,
    read_picture,
    usable_cutout,
)
from .sources import Source, is_reserved
from .vectors import UnsupportedDrawing

__all__ = ["SAME_PHOTO_BITS", "Candidate", "Harvest", "distinct", "gather"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FURNITURE = ".sh3f/"
_PHOTO_PIXELS, _PHOTO_SIDE, _CUTOUT_SIDE = 150_000, 200, 96
_RESERVED_PIXELS = 90_000
_DRAWING_BYTES = 300_000
# Two photographs are one when their fingerprints differ in at most a tenth of the 256 bits.
SAME_PHOTO_BITS = 26


@dataclass
class Candidate:
    """A file that may enter the corpus. `files` maps names to contents; the first one is the file itself."""

    kind: str
    source: str
    group: str
    reserved: bool
    tag: str
    name: str
    files: dict[str, bytes]
    width: int = 0
    height: int = 0
    pixels: int = 0
    detail: float = 0.0
    fingerprint: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What two equal files of a kind share: the fingerprint, or for a mesh the hash of the OBJ file."""
        return self.fingerprint or hashlib.sha256(next(iter(self.files.values()))).hexdigest()


@dataclass
class Harvest:
    """What a package gave: candidates, its copyright file, and how many pictures were left out for which reason."""

    candidates: list[Candidate] = field(default_factory=list)
    copyright: str = ""
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        """Count one picture that is not taken."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def gather(deb: Deb | Tarball, source: Source, kinds: set[str], max_side: int) -> Harvest:
    """Read a package once and return its candidates, duplicates included (see `distinct`)."""
    harvest = Harvest()
    own_copyright = deb.copyright_file

    def matches(path: str, patterns: tuple[str, ...]) -> bool:
        low = path.lower()
        return any(fnmatch(path, p) or fnmatch(low, p) for p in patterns)

    patterns = (source.photos if "photos" in kinds else ()) + (source.cutouts if "cutouts" in kinds else ())
    drawings = source.illustrations if "illustrations" in kinds else ()

    def wanted(path: str) -> bool:
        if path == own_copyright:
            return True
        if is_archive(path):
            meshes = path.endswith(".sh3f") and source.meshes and "meshes" in kinds
            return meshes or matches(f"{path}/inside", patterns)
        if path.lower().endswith(".svg"):
            return matches(path, drawings) and not matches(path, source.skip)
        return path.lower().endswith(_SUFFIXES) and matches(path, patterns) and not matches(path, source.skip)

    def picture(path: str, data: bytes) -> None:
        if not path.lower().endswith(_SUFFIXES) or matches(path, source.skip):
            return
        catalogue = path.split(_FURNITURE)[0].rpartition("/")[2] if _FURNITURE in path else None
        if catalogue is not None and path.split(_FURNITURE)[1].count("/") != 1:
            return  # a texture of a model, not a catalogue picture
        photo = "photos" in kinds and matches(path, source.photos)
        cutout = "cutouts" in kinds and matches(path, source.cutouts)
        if not photo and not cutout:
            return
        found = _picture(path, data, source, photo=photo, cutout=cutout, max_side=max_side, harvest=harvest)
        if found is not None:
            found.reserved = is_reserved(deb.package, catalogue)
            harvest.candidates.append(found)

    for path, data in deb.files(wanted):
        if path == own_copyright:
            harvest.copyright = data.decode("utf-8", "replace")
        elif path.lower().endswith(".svg"):
            if (found := _illustration(path, data, harvest)) is not None:
                found.reserved = is_reserved(deb.package)
                harvest.candidates.append(found)
        elif not is_archive(path):
            picture(path, data)
        else:
            members = dict(expand(path, data))
            for inner, content in members.items():
                picture(inner, content)
            if path.endswith(".sh3f") and source.meshes and "meshes" in kinds:
                inside = {name[len(path) + 1 :]: content for name, content in members.items()}
                for model in read_catalogue(inside):
                    harvest.candidates.append(_mesh(path, model, deb.package))
    return harvest


def _picture(
    path: str, data: bytes, source: Source, *, photo: bool, cutout: bool, max_side: int, harvest: Harvest
) -> Candidate | None:
    image = read_picture(data)
    if image is None:
        harvest.leave_out("unreadable")
        return None
    if cutout and usable_cutout(image, _CUTOUT_SIDE):
        seen = look(image)
        suffix = PurePosixPath(path).suffix.lower()
        return Candidate(
            "cutouts", path, _cutout_group(path), False, "", _name(path), {suffix: data},
            *image.size, image.width * image.height, seen.detail, seen.fingerprint,
        )  # fmt: skip
    solid = opaque(image)
    if not photo or solid is None:
        harvest.leave_out("no usable alpha" if cutout else "transparent")
        return None
    reserved = is_reserved(source.package)
    pixels = image.width * image.height
    if pixels < (_RESERVED_PIXELS if reserved else _PHOTO_PIXELS) or min(image.size) < _PHOTO_SIDE:
        harvest.leave_out("small")
        return None
    solid.info = image.info
    seen = look(solid)
    if seen.detail < MIN_DETAIL or seen.flat > MAX_FLAT:
        harvest.leave_out("nearly flat")
        return None
    measured = seen.flat < PHOTO_FLAT
    real = measured if source.real is None else any(fnmatch(path, pattern) for pattern in source.real)
    if reserved:  # kept as published: what is measured on them must not depend on our encoder
        encoded, suffix, size = data, PurePosixPath(path).suffix.lower(), image.size
    else:
        encoded, suffix, size = encode_photo(seen, data, max_side)
    tag = "photo" if real else "artwork"
    return Candidate(
        "photos", path, group_of(path), reserved, tag, _name(path), {suffix: encoded},
        *size, pixels, seen.detail, seen.fingerprint,
    )  # fmt: skip


def _illustration(path: str, data: bytes, harvest: Harvest) -> Candidate | None:
    if len(data) > _DRAWING_BYTES:
        harvest.leave_out("large")
        return None
    try:
        found = take_apart(data)
    except UnsupportedDrawing as reason:
        harvest.leave_out(str(reason).split(":")[0])
        return None
    files = encode(found)
    seen = look(Image.open(io.BytesIO(files["composite.png"])))
    height, width = found.layers[0].shape[:2]
    return Candidate(
        "illustrations", path, _cutout_group(path), False, "", _name(path), files,
        width, height, width * height, seen.detail, seen.fingerprint,
        {name: round(amount, 4) for name, amount in found.amounts.items()},
    )  # fmt: skip


def _mesh(path: str, model: Model, package: str) -> Candidate:
    catalogue = PurePosixPath(path).stem
    safe = {
        name: content
        for name, content in model.files.items()
        if name != model.obj and not name.startswith("/") and ".." not in PurePosixPath(name).parts
    }
    return Candidate(
        kind="meshes",
        source=f"{path}/{model.slug}/{model.obj}",
        group=f"{catalogue}/{model.slug}".lower(),
        reserved=is_reserved(package, catalogue),
        tag="",
        name=f"{catalogue}--{model.slug}",
        files={model.obj: model.files[model.obj], **safe},
        extra={
            "name": model.name,
            "category": model.category,
            "size_cm": list(model.size),
            "creator": model.creator,
        },
    )


def _cutout_group(path: str) -> str:
    if _FURNITURE in path:
        # The same split as the model that the picture shows.
        slug = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(path).stem).strip("-")
        return f"{path.split(_FURNITURE)[0].rpartition('/')[2]}/{slug}".lower()
    stem = re.sub(r"([ _-]?(mirror|flip|\d+))+$", "", PurePosixPath(path).stem.lower())
    return f"{PurePosixPath(path).parent}/{stem}"


def _name(path: str) -> str:
    """A readable, unique, portable file name without suffix."""
    common = {
        "usr",
        "share",
        "contents",
        "images",
        "wallpapers",
        "backgrounds",
        "resource",
        "resources",
        "gcompris",
        "src",
    }
    parts = [part for part in PurePosixPath(path).with_suffix("").parts if part not in common]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts[-2:])).strip("-.")[-60:].strip("-.")
    return f"{readable}-{hashlib.sha256(path.encode()).hexdigest()[:6]}"


def distinct(candidates: list[Candidate]) -> tuple[list[Candidate], int]:
    """One candidate for each picture: of every group, and of every set of look-alikes, the largest.

    Photographs and illustrations look alike when their fingerprints differ in at most a tenth of the bits; cut-outs,
    whose silhouettes are often similar, only when they are equal. Models are compared by the content of the OBJ file.

    Returns:
        the kept candidates in the order of their paths, and how many were dropped.
    """
    kept: list[Candidate] = []
    groups: set[str] = set()
    prints: list[str] = []
    exact: set[tuple[str, str]] = set()
    for candidate in sorted(candidates, key=lambda c: (not c.reserved, -c.pixels, c.source)):
        if candidate.kind in ("photos", "illustrations"):
            if (candidate.kind == "photos" and candidate.group in groups) or near_duplicate(
                candidate.fingerprint, prints, SAME_PHOTO_BITS
            ) is not None:
                continue
            groups.add(candidate.group)
            prints.append(candidate.fingerprint)
        elif (candidate.kind, candidate.identity) in exact:
            continue
        exact.add((candidate.kind, candidate.identity))
        kept.append(candidate)
    return sorted(kept, key=lambda c: c.source), len(candidates) - len(kept)
