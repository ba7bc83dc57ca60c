"""The corpus' list of files: ``manifest.jsonl``, one JSON object a line. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import PolyditError

__all__ = ["SPLITS", "Record", "load_manifest", "save_manifest", "split_of", "write_atomically"]

SPLITS = ("train", "val", "reserved")
_VALIDATION_PERCENT = 8


@dataclass
class Record:
    """One line of the manifest.

    Attributes:
        file: path relative to the corpus folder, with forward slashes; of a mesh, the OBJ file; of an illustration,
            its layers.json.
        kind: ``photos``, ``cutouts``, ``meshes`` or ``illustrations``.
        split: ``train``, ``val`` or ``reserved`` (evaluation only, never trained on).
        tag: ``photo`` or ``artwork`` for photographs, an empty string otherwise.
        package, version: the Debian package it comes from.
        source: path inside the package (and inside an archive in it).
        licence: short name, as well as the package's copyright file tells it; full texts lie in ``licences/``.
        width, height: in pixels, 0 for meshes.
        size: bytes on the disk (of a mesh or an illustration, all its files).
        sha256: of `file`.
        detail: mean absolute Laplacian, see `pictures`; 0 for meshes.
        fingerprint: 256-bit difference hash; empty for meshes.
        extra: kind-specific; for meshes name, category, size in centimetres, creator; for illustrations the mean alpha
            of each layer.
    """

    file: str
    kind: str
    split: str
    tag: str
    package: str
    version: str
    source: str
    licence: str
    width: int
    height: int
    size: int
    sha256: str
    detail: float = 0.0
    fingerprint: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def split_of(package: str, group: str) -> str:
    """``val`` for 8 % of the groups of pictures, ``train`` for the others; a pure function of its arguments."""
    digest = hashlib.sha256(f"{package}\n{group}".encode()).digest()
    return "val" if int.from_bytes(digest[:4], "big") % 100 < _VALIDATION_PERCENT else "train"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Raises:
        PolyditError: no room, or no permission.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise PolyditError(
            f"{path}: cannot be written ({error.strerror or error}); check the room and the permissions"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def load_manifest(folder: Path) -> list[Record]:
    """Read ``manifest.jsonl`` in `folder`.

    Raises:
        PolyditError: there is none, or a line is damaged (named).
    """
    path = folder / "manifest.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise PolyditError(
            f"{path}: not found; build the corpus with 'polydit corpus build --output {folder}'"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PolyditError(f"{path}: cannot be read ({error}); build the corpus again") from error
    known = {f.name for f in fields(Record)}
    records = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            record = Record(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise PolyditError(
                f"{path}: line {number} is damaged; delete the file and build the corpus again"
            ) from error
        records.append(record)
    return records


def save_manifest(folder: Path, records: list[Record]) -> None:
    """Write ``manifest.jsonl``, sorted by file."""
    rows = sorted((asdict(record) for record in records), key=lambda row: row["file"])
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(", ", ": ")) + "\n" for row in rows)
    write_atomically(folder / "manifest.jsonl", text.encode())
