"""npm packages as sources of the corpus, built from archives that the tests make; no network, no npm."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from polydit.core.data.corpus import npm
from polydit.core.data.corpus.build import build_corpus
from polydit.core.data.corpus.npm import Tarball
from polydit.core.data.corpus.sources import CATALOGUE
from polydit.core.errors import PolyditError

from .packages import data, make_deb, noise_picture

LICENCE = b"Permission is hereby granted, free of charge"


def make_tgz(path: Path, files: dict[str, bytes], **described: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        if described:
            files = {"package.json": json.dumps(described).encode(), **files}
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def preview(tmp_path) -> Path:
    """A package with two photographs, one of them no photograph by the catalogue."""
    folder = tmp_path / "files"
    folder.mkdir()
    return make_tgz(
        folder / "tabler-preview-1.2.0.tgz",
        {
            "LICENSE.md": LICENCE,
            "dist/static/photos/desk.jpg": data(noise_picture(1), "jpg", quality=95),
            "dist/static/tracks/cover.jpg": data(noise_picture(2), "jpg", quality=95),
        },
        name="@tabler/preview",
        version="1.2.0",
        license="MIT",
    )


def test_photographs_enter_with_their_licence(preview, tmp_path):
    records = build_corpus(tmp_path / "out", kinds=["photos"], sources=[preview.parent], max_side=800)
    assert [(r.package, r.version, r.source, r.licence, r.tag) for r in records] == [
        ("tabler-preview", "1.2.0", "dist/static/photos/desk.jpg", "MIT", "photo")
    ]
    assert (tmp_path / "out" / records[0].file).is_file()
    assert (tmp_path / "out" / "licences" / "tabler-preview.txt").read_bytes() == LICENCE


def test_a_reserved_photograph_stays_reserved(preview, tmp_path):
    make_deb(
        preview.parent,
        "opencv-doc",
        {"usr/share/doc/opencv-doc/examples/data/desk.jpg": data(noise_picture(1), "jpg", quality=95)},
    )
    records = build_corpus(tmp_path / "out", kinds=["photos"], sources=[preview.parent], max_side=800)
    assert [(r.package, r.split) for r in records] == [("opencv-doc", "reserved")]


def test_packages_come_through_npm(monkeypatch, preview, tmp_path):
    calls = []

    def answer(command, **options):
        calls.append(command)
        if "pack" in command:
            shutil.copy(preview, options["cwd"])
        return subprocess.CompletedProcess(command, 0, "1.2.0\n", "")

    monkeypatch.setattr(npm.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(npm.subprocess, "run", answer)
    said: list[str] = []
    for _ in range(2):
        records = build_corpus(
            tmp_path / "out", kinds=["photos"], packages=["tabler-preview"], max_side=800, report=said.append
        )
    assert len(records) == 1
    assert [("pack" in c, c[-1]) for c in calls] == [
        (False, "version"),
        (True, "@tabler/preview"),
        (False, "version"),
    ]
    assert any("up to date" in line for line in said)
    assert all("--ignore-scripts" in c for c in calls if "pack" in c)


def test_without_npm(monkeypatch, tmp_path):
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    with pytest.raises(PolyditError, match="unknown to npm, or npm is not installed"):
        build_corpus(tmp_path, kinds=["photos"], packages=["tabler-preview"])
    with pytest.raises(PolyditError, match=r"npm: not found\); give the .tgz"):
        npm.download("tabler-ui", tmp_path)


def test_a_failed_download_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(npm.shutil, "which", lambda name: f"/usr/bin/{name}")
    failed = subprocess.CompletedProcess([], 1, "", "npm error code E404\nnpm error 404 Not Found")
    monkeypatch.setattr(npm.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(PolyditError) as caught:
        npm.download("tabler-ui", tmp_path)
    assert "404 Not Found" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert npm.newest_version("tabler-ui") is None


def test_damaged_archives_are_refused(preview, tmp_path):
    short = tmp_path / "short.tgz"
    short.write_bytes(preview.read_bytes()[:5000])
    nameless = make_tgz(tmp_path / "nameless.tgz", {"a.txt": b"a"})
    broken = make_tgz(tmp_path / "broken.tgz", {"package.json": b"{"})
    for file, message in ((short, "damaged"), (nameless, "not an npm package"), (broken, "cannot be read")):
        with pytest.raises(PolyditError, match=message):
            Tarball(file)


def test_a_package_without_licence_says_so(tmp_path):
    tarball = Tarball(make_tgz(tmp_path / "a.tgz", {"a.txt": b"a"}, name="a", version="1"))
    assert tarball.licence("a.txt", "") == "not stated"
    tarball = Tarball(make_tgz(tmp_path / "b.tgz", {"LICENSE": LICENCE}, name="b", version="1"))
    assert tarball.licence("a.txt", "") == "see licences/"


def test_the_catalogue_names_npm_packages_as_their_archives_do():
    names = [source for source in CATALOGUE if source.npm]
    assert len(names) == 23
    assert all(source.package == source.npm.lstrip("@").replace("/", "-") for source in names)
