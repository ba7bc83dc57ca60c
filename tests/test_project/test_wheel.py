"""The built wheel, in an environment of its own, from a folder whose names get in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from polydit.core.task import find_tasks

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]

SHIPPED = [
    task for task in find_tasks()[0].values() if task.weights_folder() and task.module.startswith("polydit.")
]

ALSO_NEEDED = {
    "layer-decomposition": ("--mask", "mask.png"),
    "shape-3d": ("--no-mesh", "--resolution", "32"),  # meshes need an extra
    "video-inpainting": ("--mask", "mask.png", "--format", "frames"),  # videos need an extra
    "virtual-try-on": ("--garment", "picture.png", "--mask", "mask.png"),
}


def copy_sources(root: Path, target: Path) -> Path:
    """What a commit would hold: building must not see, or leave, anything in the work tree."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    else:  # not a checkout
        hidden = (".venv", ".git", "build", "dist", "runs", "demo_output")
        found = [file.relative_to(root) for file in root.rglob("*") if file.is_file()]
        names = [str(name) for name in found if name.parts[0] not in hidden]
    for name in names:
        if name.startswith("tests/") or not (root / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_sources(root, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
        check=True,
        capture_output=True,
        timeout=300,
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel; its dependencies are those of this one."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    interpreter = environment / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(interpreter),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    (site,) = environment.glob("lib/python*/site-packages")
    # A plain line: .pth files over there, such as that of an editable polydit, are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return interpreter


@pytest.fixture
def run(python: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command where folders named core and tasks lie about, each of which would break everything."""
    for name in ("core", "tasks", "demos", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')", encoding="utf-8")

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            list(map(str, words)),
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return call


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"polydit", next(top for top in tops if top.endswith(".dist-info"))}
    assert "polydit/py.typed" in names
    assert not [name for name in names if name.startswith("polydit/tests")]
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_configs_and_assets_are_in_the_wheel(root: Path, wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "demos/weights", "demos/samples"):
        for file in (root / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"polydit/{file.relative_to(root).as_posix()}" in names


def test_the_command_works_beside_folders_named_like_ours(python: Path, run: Callable):
    script = python.with_name("polydit")
    for command in ([script], [python, "-m", "polydit.core.cli"]):
        done = run(*command, "list")
        assert done.returncode == 0, done.stderr
        assert "super-resolution" in done.stdout
        assert "cannot be loaded" not in done.stdout
    where = run(python, "-c", "import polydit; print(polydit.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(python.parent.parent)


@pytest.mark.parametrize(
    "task", [task for task in SHIPPED if task.weights_folder().is_dir()], ids=lambda task: task.name
)
def test_predict_with_the_shipped_weights(task, python: Path, run: Callable, tmp_path: Path):
    Image.effect_mandelbrot((24, 20), (-2, -1.2, 0.8, 1.2), 50).save(tmp_path / "picture.png")
    mask = Image.new("L", (24, 20))
    mask.paste(255, (8, 5, 16, 15))
    mask.save(tmp_path / "mask.png")
    words = [task.input_flag, "picture.png", *ALSO_NEEDED.get(task.name, ()), "--output", "out"]
    done = run(python.with_name("polydit"), task.name, "predict", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/results.json").is_file()
    assert list((tmp_path / "out").glob("picture*"))
