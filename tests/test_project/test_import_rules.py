"""Who may import whom: demos -> tasks -> core, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIGHT = ("__init__.py", "core/__init__.py", "tasks/__init__.py")


def imports(root: Path, file: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of what a module imports (``polydit.core.task.Option`` for a name of a module), and the lines."""
    package = ("polydit", *file.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *((node.module,) if node.module else ())))
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def modules(root: Path, *folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (root / folder).rglob("*.py"))


def breaches(root: Path, folder: str, *forbidden: str) -> list[str]:
    return [
        f"{file.relative_to(root)}:{line} imports {name}"
        for file in modules(root, folder)
        for name, line in imports(root, file)
        if any(name == prefix or name.startswith(prefix + ".") for prefix in forbidden)
    ]


def test_the_reader_of_imports_sees_relative_ones(tmp_path: Path):
    folder = tmp_path / "core" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text(
        "from ...tasks.x import y\nfrom . import b\nimport torch.nn\nfrom .. import task\n"
    )
    assert [name for name, _ in imports(tmp_path, folder / "a.py")] == [
        "polydit.tasks.x.y",
        "polydit.core.deep.b",
        "torch.nn",
        "polydit.core.task",
    ]


def test_core_knows_no_task_and_no_demo(root: Path):
    assert breaches(root, "core", "polydit.tasks", "polydit.demos") == []


def test_tasks_know_no_demo_and_no_other_task(root: Path):
    assert breaches(root, "tasks", "polydit.demos") == []
    tasks = [folder.name for folder in (root / "tasks").iterdir() if (folder / "__init__.py").is_file()]
    for task in tasks:
        others = [f"polydit.tasks.{other}" for other in tasks if other != task]
        assert breaches(root, f"tasks/{task}", *others) == []


def test_core_names_no_task(root: Path):
    tasks = [folder.name for folder in (root / "tasks").iterdir() if (folder / "__init__.py").is_file()]
    words = {word for task in tasks for word in (task, task.replace("_", "-"))}
    for file in modules(root, "core"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in words, (
                    f"{file.relative_to(root)}:{node.lineno} names the task {node.value}"
                )


def test_backbones_import_nothing_above_themselves(root: Path):
    above = (
        "training",
        "acceleration",
        "adapters",
        "conditioning",
        "diffusion",
        "data",
        "metrics",
        "media",
        "probing",
    )
    assert breaches(root, "core/backbones", *(f"polydit.core.{name}" for name in above)) == []


def test_inside_the_package_imports_are_relative(root: Path):
    found = [
        f"{file.relative_to(root)}:{node.lineno}"
        for file in modules(root, "core", "tasks")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] == "polydit"
        )
        or (
            isinstance(node, ast.Import)
            and any(alias.name.split(".")[0] == "polydit" for alias in node.names)
        )
    ]
    assert found == []


@pytest.mark.parametrize("package", ["torchvision", "cv2", "matplotlib"])
def test_packages_that_are_no_dependency_are_not_imported(root: Path, package: str):
    for folder in ("core", "tasks", "demos"):
        assert breaches(root, folder, package) == []


def test_no_module_has_a_name_that_says_nothing(root: Path):
    empty = {"utils", "util", "common", "helpers", "helper", "misc", "base"}
    assert [str(file) for file in modules(root, "core", "tasks", "demos") if file.stem in empty] == []
