"""What the wheel would hold is what the tree holds."""

from __future__ import annotations

import ast
import fnmatch
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("core", "tasks", "demos")


def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in_tree(root: Path) -> set[str]:
    found = {"polydit"}
    for top in PACKAGES:
        for file in (root / top).rglob("__init__.py"):
            found.add(".".join(("polydit", *file.parent.relative_to(root).parts)))
    return found


def test_the_package_list_is_the_tree(root: Path):
    listed = project(root)["tool"]["setuptools"]["packages"]
    tree = packages_in_tree(root)
    assert sorted(listed) == listed, "keep the list sorted"
    assert set(listed) == tree, f"add {sorted(tree - set(listed))}, remove {sorted(set(listed) - tree)}"


def test_every_folder_with_modules_is_a_package(root: Path):
    for top in PACKAGES:
        for file in (root / top).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


def test_packages_say_what_they_are_and_export(root: Path):
    for name in packages_in_tree(root):
        file = root.joinpath(*name.split(".")[1:], "__init__.py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{file}: no docstring"
        assigned = {
            target.id
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        if len(tree.body) > 2:  # more than a docstring and the __future__ import
            assert "__all__" in assigned, f"{file}: no __all__"


def test_data_files_are_matched_by_the_patterns(root: Path):
    patterns = project(root)["tool"]["setuptools"]["package-data"]["polydit"]
    folders = [root / "configs", root / "demos/weights", root / "demos/samples"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    for file in [root / "py.typed", *files]:
        name = file.relative_to(root).as_posix()
        # setuptools' ** means any folders, also none.
        shapes = [pattern.replace("**/", "") for pattern in patterns] + patterns
        assert any(fnmatch.fnmatch(name, shape) for shape in shapes), f"{name} would not be in the wheel"


def test_shipped_weights_are_small(root: Path):
    for folder in sorted((root / "demos/weights").glob("*")):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        assert size <= 12e6, f"{folder.name} has {size / 1e6:.1f} MB"


def test_versions_agree(root: Path):
    import polydit

    version = project(root)["project"]["version"]
    assert polydit.__version__ == version
    assert f"version: {version}" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_torch_has_the_agreed_bounds(root: Path):
    assert "torch>=2.6,<2.14" in project(root)["project"]["dependencies"]


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff"]
)
def test_project_files_exist(root: Path, name: str):
    assert (root / name).stat().st_size > 0
