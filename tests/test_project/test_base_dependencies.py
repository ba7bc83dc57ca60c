"""Every module imports where nothing but the base dependencies is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PROBE = """
import importlib, sys
from importlib.machinery import PathFinder

blocked = set(sys.argv[1].split(","))

class WithoutExtras(PathFinder):
    # Not found, rather than refused: libraries ask find_spec whether an optional module is there.
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
failed = []
for name in sys.stdin.read().split():
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {type(error).__name__}: {error}")
print("\\n".join(failed))
"""


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", item)[0].lower().replace("_", "-") for item in requirements} - {
        "polydit"
    }


def closure(distributions: set[str]) -> set[str]:
    """The distributions and all that they require, as installed here, without extras."""
    seen: set[str] = set()
    queue = list(distributions)
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        seen.add(name)
        queue += names([item for item in required if "extra ==" not in item])
    return seen


def test_modules_import_without_the_extras(root: Path):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = closure(
        names(project["dependencies"]) | {"docstring-parser", "typeshed-client"}
    )  # jsonargparse[signatures]
    extras = names([item for group in project["optional-dependencies"].values() for item in group])
    beyond = closure(extras) - base
    by_module = metadata.packages_distributions()
    # What torch alone brings in through the back door must not be leaned on either.
    blocked = {"torchvision", "cv2", "decord", "gradio", "av", "imageio_ffmpeg", "playwright", "pytest"} | {
        module
        for module, owners in by_module.items()
        if {owner.lower().replace("_", "-") for owner in owners} <= beyond
    }
    blocked -= {
        "setuptools",
        "pkg_resources",
        "_distutils_hack",
    }  # in every environment, and torch asks for it
    modules = [
        ".".join(("polydit", *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for folder in ("core", "tasks", "demos")
        for file in sorted((root / folder).rglob("*.py"))
    ]
    assert len(modules) > 50
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(sorted(blocked))],
        input="\n".join(modules),
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout.strip() == "", done.stdout
