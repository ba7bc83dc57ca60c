"""Every shipped config is one that the command line takes and builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polydit.core.errors import PolyditError
from polydit.core.task import TaskSpec, find_tasks

YOURS = re.compile(r"pretrained\.load_transformer\s+init_args:\s+source: null")
"""Stands on a pretrained transformer, whose folder only the user has."""
TASKS = [task for task in find_tasks()[0].values() if task.module.startswith("polydit.")]
CONFIGS = [
    pytest.param(task, file, id=f"{task.package}/{file.name}")
    for task in TASKS
    for file in sorted(task.config_folder().glob("*.yaml"))
]


@pytest.mark.parametrize(("task", "file"), CONFIGS)
def test_a_config_builds_its_model(task: TaskSpec, file: Path):
    import torch
    import yaml

    from polydit.core.training.cli import TaskCLI

    words = ["--config", str(file)]
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    if "backbone" not in settings.get("init_args", settings):
        # Settings that come behind the config of a base; nobody can use them alone.
        assert task.default_config
        words = ["--config", str(task.config_folder() / task.default_config), *words]
    with torch.device("meta"):  # shapes without values: the large ones fit too, and no weights are needed
        if YOURS.search(file.read_text(encoding="utf-8")):
            with pytest.raises(PolyditError, match=r"^--model\.backbone\.source: .* is missing; name it$"):
                TaskCLI(task, "fit", words)
            return
        module = TaskCLI(task, "fit", words).model
    assert sum(parameter.numel() for parameter in module.backbone.parameters()) > 0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_configs_that_a_task_names_exist(task: TaskSpec):
    names = {system.config for system in task.systems} | (
        {task.default_config} if task.default_config else set()
    )
    shipped = {file.name for file in task.config_folder().glob("*.yaml")}
    assert names - shipped == set()


def test_every_config_folder_belongs_to_a_task(root: Path):
    folders = {folder.name for folder in (root / "configs").iterdir() if folder.is_dir()}
    assert folders <= {task.package for task in TASKS}
