"""The corpus, built from packages that the tests make; no network."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polydit.core.data import corpus
from polydit.core.data.corpus import build, debian
from polydit.core.data.corpus.archives import read_rcc
from polydit.core.data.corpus.debian import Deb, licence_of
from polydit.core.data.corpus.manifest import Record, load_manifest, split_of, write_atomically
from polydit.core.data.corpus.pictures import group_of
from polydit.core.data.corpus.sources import CATALOGUE, is_reserved
from polydit.core.errors import PolyditError

from .packages import COPYRIGHT, cutout, data, make_deb, make_rcc, make_sh3f, noise_picture


def run(output: Path, *arguments: str) -> list[Record]:
    parser = argparse.ArgumentParser()
    corpus.add_arguments(parser)
    assert corpus.run(parser.parse_args(["--output", str(output), "--max-side", "800", *arguments])) == 0
    return load_manifest(output)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with five small packages: wallpapers, reserved photographs, stamps, furniture, one unknown."""
    folder = tmp_path_factory.mktemp("debs")
    wall = "usr/share/backgrounds/mate/nature"
    gradient = Image.fromarray(np.linspace(0, 255, 480 * 640).reshape(480, 640).astype(np.uint8)).convert(
        "RGB"
    )
    make_deb(
        folder,
        "mate-backgrounds",
        {
            f"{wall}/Dune.jpg": data(noise_picture(1, (1100, 640)), "jpg", quality=95),
            f"{wall}/Dune_700x407.jpg": data(noise_picture(1, (700, 407)), "jpg", quality=95),
            f"{wall}/Copy.png": data(noise_picture(1, (1000, 582)), "png"),
            f"{wall}/Fern.png": data(noise_picture(2), "png"),
            f"{wall}/Kept.jpg": data(noise_picture(3), "jpg", quality=97),
            f"{wall}/Pressed.jpg": data(noise_picture(4, (780, 600)), "jpg", quality=12),
            f"{wall}/Small.jpg": data(noise_picture(5, (120, 90)), "jpg"),
            f"{wall}/Shared.jpg": data(noise_picture(9, (500, 400)), "jpg", quality=96),
            f"{wall}/Broken.jpg": b"\xff\xd8 broken",
            "usr/share/backgrounds/mate/abstract/Smooth.png": data(gradient, "png"),
            "usr/share/backgrounds/mate/abstract/Lines.png": data(noise_picture(6), "png"),
        },
    )
    make_deb(
        folder,
        "lomiri-wallpapers-16.04",
        {
            "usr/share/backgrounds/Bridge.jpg": data(noise_picture(8, (900, 600)), "jpg"),
            "usr/share/backgrounds/Shared_too.jpg": data(noise_picture(9, (500, 400)), "jpg", quality=60),
        },
        compression="gz",
    )
    stamps = {f"usr/share/tuxpaint/stamps/animals/a{i}.png": data(cutout(20 + i), "png") for i in range(12)}
    stamps["usr/share/tuxpaint/stamps/animals/solid.png"] = data(noise_picture(40, (128, 128)), "png")
    stamps["usr/share/tuxpaint/stamps/animals/tiny.png"] = data(cutout(41, 40), "png")
    make_deb(folder, "tuxpaint-stamps-default", stamps)
    make_deb(
        folder,
        "sweethome3d-furniture",
        {
            "usr/share/sweethome3d/furniture/Scopia.sh3f": make_sh3f("scopia", ["sofa", "lamp"]),
            "usr/share/sweethome3d/furniture/KatorLegaz.sh3f": make_sh3f(
                "katorlegaz", ["chair", "bed", "shelf"]
            ),
        },
    )
    make_deb(
        folder, "my-own-pictures", {"usr/share/x/one.webp": data(noise_picture(50), "webp", lossless=True)}
    )
    return folder


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("corpus")
    run(output, "--from", str(packages))
    return output


def by_source(output: Path) -> dict[str, Record]:
    return {Path(r.source).name: r for r in load_manifest(output)}


def test_every_file_of_the_manifest_is_there_as_it_says(built):
    records = load_manifest(built)
    assert Counter((r.kind, r.split == "reserved") for r in records) == {
        ("photos", False): 6, ("photos", True): 2, ("cutouts", False): 15, ("cutouts", True): 2,
        ("meshes", False): 3, ("meshes", True): 2,
    }  # fmt: skip
    for record in records:
        path = built / record.file
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
        folder = record.file.split("/")
        assert folder[:2] == (
            ["reserved", record.kind] if record.split == "reserved" else [record.kind, record.split]
        )
        if record.kind != "meshes":
            assert Image.open(path).size == (record.width, record.height)
            assert path.stat().st_size == record.size
    assert (built / "licences" / "mate-backgrounds.txt").read_text() == COPYRIGHT


def test_sizes_of_one_picture_are_one_and_the_largest_is_kept(built):
    sources = by_source(built)
    assert "Dune.jpg" in sources
    assert "Dune_700x407.jpg" not in sources  # the same name but for the size
    assert "Copy.png" not in sources  # another name, the same picture


def test_flat_small_and_broken_pictures_are_left_out_and_counted(packages, tmp_path, capsys):
    run(tmp_path, "--from", str(packages), "--packages", "mate-backgrounds", "--kinds", "photos")
    said = capsys.readouterr().out
    assert "6 files, 2 duplicates dropped; left out: 1 nearly flat, 1 small, 1 unreadable" in said
    assert {"Smooth.png", "Small.jpg", "Broken.jpg"}.isdisjoint(by_source(tmp_path))


def test_reserved_pictures_stay_reserved_even_if_another_package_has_them(built, packages, tmp_path):
    sources = by_source(built)
    assert sources["Shared_too.jpg"].split == "reserved"
    assert "Shared.jpg" not in sources
    # The same when the other package was there first.
    run(tmp_path, "--from", str(packages), "--packages", "mate-backgrounds")
    before = by_source(tmp_path)["Shared.jpg"]
    assert (tmp_path / before.file).exists()
    run(tmp_path, "--from", str(packages), "--packages", "lomiri-wallpapers-16.04")
    assert "Shared.jpg" not in by_source(tmp_path)
    assert not (tmp_path / before.file).exists()
    assert by_source(tmp_path)["Shared_too.jpg"].split == "reserved"


def test_reserved_files_keep_their_bytes(built, packages):
    record = by_source(built)["Bridge.jpg"]
    deb = Deb(packages / "lomiri-wallpapers-16.04_1.0-1_all.deb")
    original = dict(deb.files(lambda path: path.endswith("Bridge.jpg")))
    assert [(built / record.file).read_bytes()] == list(original.values())


def test_photographs_are_stored_for_training(built, packages):
    sources = by_source(built)
    assert max(sources["Dune.jpg"].width, sources["Dune.jpg"].height) == 800
    assert sources["Kept.jpg"].width == 600
    pressed = sources["Pressed.jpg"]  # strong compression: reduced, by half at most
    assert 390 <= pressed.width < 700
    fern = np.asarray(Image.open(built / sources["Fern.png"].file).convert("RGB")).astype(float)
    assert np.abs(fern - np.asarray(noise_picture(2)).astype(float)).mean() < 1.0
    assert sources["Dune.jpg"].tag == "photo"
    assert sources["Lines.png"].tag == "artwork"
    assert sources["Kept.jpg"].detail > 1.3


def test_licences_are_those_of_the_files(built):
    sources = by_source(built)
    assert sources["Dune.jpg"].licence == "CC-BY-SA-4.0"
    assert sources["Lines.png"].licence == "GPL-2+"
    assert licence_of("usr/share/a/special.jpg", COPYRIGHT) == "CC-BY-SA-4.0"
    assert licence_of("usr/x", "Everything is under the GPL-3 here").startswith("GPL-3 (see")
    assert licence_of("usr/x", "Do as you like") == "see licences/"


def test_furniture_has_models_with_all_their_files(built):
    records = {r.extra["name"]: r for r in load_manifest(built) if r.kind == "meshes"}
    assert set(records) == {"A sofa café", "A lamp café", "A chair café", "A bed café", "A shelf café"}
    chair = records["A chair café"]
    folder = (built / chair.file).parent
    assert sorted(p.name for p in folder.iterdir()) == ["chair.mtl", "chair.obj", "wood.jpg"]
    assert chair.extra["size_cm"] == [50.5, 40.0, 30.0]
    assert records["A sofa café"].split == "reserved"
    # A model and its catalogue picture are never on different sides.
    icons = {
        Path(r.source).stem: r.split
        for r in load_manifest(built)
        if "sh3f" in r.source and r.kind == "cutouts"
    }
    assert {Path(r.file).stem: r.split for r in records.values()} == icons


def test_running_again_reads_nothing_and_changes_nothing(built, packages, capsys, monkeypatch):
    before = files_in(built)
    monkeypatch.setattr(build, "gather", lambda *a: pytest.fail("a package was read again"))
    run(built, "--from", str(packages))
    assert files_in(built) == before
    assert capsys.readouterr().out.count("up to date") == 5


def test_another_machine_builds_the_same(built, packages, tmp_path):
    run(tmp_path, "--from", *map(str, sorted(packages.glob("*.deb"), reverse=True)))
    assert files_in(tmp_path) == files_in(built)


def test_kinds_are_added_to_what_is_there(built, packages, tmp_path):
    run(tmp_path, "--from", str(packages), "--kinds", "photos")
    assert {r.kind for r in load_manifest(tmp_path)} == {"photos"}
    run(tmp_path, "--from", str(packages), "--kinds", "cutouts,meshes")
    assert sorted(r.file for r in load_manifest(tmp_path)) == sorted(r.file for r in load_manifest(built))


def test_a_new_version_replaces_the_old_one(tmp_path):
    first = make_deb(
        tmp_path / "1",
        "mine",
        {"usr/a.png": data(noise_picture(1), "png"), "usr/b.png": data(noise_picture(2), "png")},
    )
    second = make_deb(tmp_path / "2", "mine", {"usr/a.png": data(noise_picture(3), "png")}, version="2.0-1")
    out = tmp_path / "out"
    run(out, "--from", str(first))
    run(out, "--from", str(second))
    (record,) = load_manifest(out)
    assert record.version == "2.0-1"
    assert len(list(out.rglob("*.jpg"))) == 1


def test_an_interrupted_run_leaves_no_half_files_and_goes_on(packages, built, tmp_path, monkeypatch):
    count = 0
    real = build.write_atomically

    def stop(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count == 25:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(build, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--from", str(packages))
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.glob(".download-*"))
    for record in load_manifest(tmp_path):
        assert hashlib.sha256((tmp_path / record.file).read_bytes()).hexdigest() == record.sha256
    # What a kill cannot clean is cleaned by the next run.
    (tmp_path / "photos" / "x.partial").write_bytes(b"half")
    (tmp_path / ".download-zz").mkdir()
    run(tmp_path, "--from", str(packages))
    assert files_in(tmp_path) == files_in(built)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(PolyditError, match=r"a\.png: cannot be written \(No space left on device\)"):
        write_atomically(tmp_path / "a.png", b"x")
    assert list(tmp_path.iterdir()) == []


def test_zstd_packages_are_read(tmp_path):
    if shutil.which("zstd") is None:
        pytest.skip("the zstd program is not installed")
    path = make_deb(tmp_path, "mine", {"usr/a.png": data(noise_picture(1), "png")}, compression="zst")
    assert [name for name, _ in Deb(path).files(lambda p: p.endswith(".png"))] == ["usr/a.png"]


def test_qt_resources():
    files = {"one.png": (b"first" * 9, False), "two.svg": (b"second" * 99, True)}
    assert dict(read_rcc(make_rcc(files))) == {f"res/{name}": content for name, (content, _) in files.items()}
    assert list(read_rcc(b"something else")) == []


def test_groups():
    same = {
        group_of("usr/w/Altai/contents/images/5120x2880.png"),
        group_of("usr/w/Altai/contents/images/1080x1920.png"),
        group_of("usr/w/Altai/contents/images_dark/1080x1920.png"),
    }
    assert len(same) == 1
    assert group_of("a/adwaita-d.webp") == group_of("a/adwaita-l.webp")
    assert group_of("a/Elephants_3840x2160.jpg") == group_of("a/Elephants.jpg")
    assert group_of("a/dandelion.jpg") != group_of("a/lion.jpg")
    assert group_of("a/Kay/contents/images/1.png") != group_of("a/Kite/contents/images/1.png")


def test_splits_are_a_pure_function_with_the_wanted_share():
    splits = [split_of("p", f"g{i}") for i in range(4000)]
    assert splits == [split_of("p", f"g{i}") for i in range(4000)]
    assert 0.065 < splits.count("val") / 4000 < 0.095


def test_what_is_reserved():
    assert all(is_reserved(p) for p in ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "opencv-doc"))
    assert is_reserved("sweethome3d-furniture", "Scopia")
    assert not is_reserved("sweethome3d-furniture", "KatorLegaz")
    assert not is_reserved("mate-backgrounds")
    # Reserved packages are read first, so that a shared picture is theirs.
    flags = [is_reserved(source.package) for source in CATALOGUE]
    assert flags == sorted(flags, reverse=True)


# --- what can go wrong ---------------------------------------------------------------------------------------------


def test_errors_name_the_file_or_option(tmp_path, packages):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.deb").write_text("no package")
    whole = (packages / "mate-backgrounds_1.0-1_all.deb").read_bytes()
    (tmp_path / "cut.deb").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    (tmp_path / "damaged.deb").write_bytes(damaged)
    out = tmp_path / "out"
    cases = {
        ("--from", str(tmp_path / "none")): "none: not found; give .deb or .tgz files, or folders of them",
        ("--from", str(tmp_path / "empty")): "empty: no .deb or .tgz files in this folder",
        ("--from", str(tmp_path / "text.deb")): "text.deb: not a Debian package",
        ("--from", str(tmp_path / "cut.deb")): "cut.deb: cut short; download it again",
        ("--from", str(tmp_path / "damaged.deb")): "damaged.deb: damaged",
        ("--kinds", "photos,songs"): "--kinds: unknown kind 'songs'; choose from photos, cutouts, meshes",
        ("--kinds", ","): "--kinds: nothing was asked for",
        ("--max-side", "3"): "--max-side 3: too small",
        (
            "--from",
            str(packages),
            "--packages",
            "nothing",
        ): "--packages nothing: none of the files given with --from",
    }
    for arguments, message in cases.items():
        with pytest.raises(PolyditError) as caught:
            run(out, *arguments)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(out.rglob("*.partial"))


def fake_apt(monkeypatch, *, known: bool, error: str = "", deb: Path | None = None) -> None:
    def answer(command, **options):
        if command[0] == "apt-cache":
            return subprocess.CompletedProcess(
                command, 0, "Package: x\nVersion: 1.0-1\n" if known else "", ""
            )
        if deb is not None:
            shutil.copy(deb, options["cwd"])
        return subprocess.CompletedProcess(command, 0 if deb else 100, "", error)

    monkeypatch.setattr(debian.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(debian.subprocess, "run", answer)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("E: Unable to locate package x", "apt knows no such package; run 'apt-get update'"),
        (
            "E: Failed to fetch http://d/x.deb  Could not resolve 'd'",
            "is the network up? .deb files can be given with --from",
        ),
        ("E: You don't have enough free space in /var", "disk full while downloading"),
        ("E: Something new", "apt-get download failed (E: Something new)"),
    ],
)
def test_download_errors(monkeypatch, tmp_path, error, message):
    fake_apt(monkeypatch, known=True, error=error)
    with pytest.raises(PolyditError) as caught:
        run(tmp_path, "--packages", "x")
    assert message in str(caught.value)
    assert not list(tmp_path.glob(".download-*"))


def test_packages_come_from_apt(monkeypatch, tmp_path, packages, capsys):
    fake_apt(monkeypatch, known=True, deb=packages / "mate-backgrounds_1.0-1_all.deb")
    assert {r.package for r in run(tmp_path, "--packages", "mate-backgrounds")} == {"mate-backgrounds"}
    assert "downloading" in capsys.readouterr().out
    fake_apt(monkeypatch, known=True, error="must not be called")
    run(tmp_path, "--packages", "mate-backgrounds")
    assert "up to date" in capsys.readouterr().out


def test_unknown_packages(monkeypatch, tmp_path):
    fake_apt(monkeypatch, known=False)
    with pytest.raises(PolyditError, match="--packages x: unknown to apt; run 'apt-get update'"):
        run(tmp_path, "--packages", "x")
    with pytest.raises(
        PolyditError, match=r"knows none of the packages; run 'apt-get update', or give .deb files"
    ):
        run(tmp_path)


def test_without_apt(monkeypatch, tmp_path):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(PolyditError, match=r"apt-cache: not found on this system; .* --from"):
        run(tmp_path)


def test_damaged_lists_are_named(built, tmp_path):
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"file": "a"}) + "\n")
    with pytest.raises(PolyditError, match=r"manifest\.jsonl: line 1 is damaged"):
        load_manifest(tmp_path)
    with pytest.raises(PolyditError, match=r"manifest\.jsonl: not found; build the corpus with"):
        load_manifest(tmp_path / "none")


def test_the_command_needs_no_torch():
    code = "import sys, argparse; from polydit.core.data import corpus; from polydit.core.data.corpus import build; "
    code += "corpus.add_arguments(argparse.ArgumentParser()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
