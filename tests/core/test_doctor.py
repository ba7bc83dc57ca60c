"""What `polydit doctor` finds and what it advises."""

from __future__ import annotations

import copy
import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

from polydit.core import doctor
from polydit.core.cli import main


@pytest.fixture(scope="module")
def examined() -> dict:
    return doctor.examine()


def test_findings_are_json_and_tell_versions_devices_and_codecs(examined: dict):
    assert json.loads(json.dumps(examined)) == examined
    assert examined["packages"]["torch"] == importlib.metadata.version("torch")
    assert {"torchao", "bitsandbytes", "onnxruntime"} <= examined["packages"].keys()
    assert examined["devices"]["cuda"] is torch.cuda.is_available()
    assert examined["devices"]["cpu_instructions"] == torch.backends.cpu.get_cpu_capability()
    assert 0 < examined["system"]["free_memory_gb"] <= examined["system"]["memory_gb"]
    assert {"jpg", "webp", "avif"} <= examined["pictures"].keys()


def test_what_each_extra_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda _: [
            "torch>=2",
            'numpy>=2; extra == "video"',
            'no-such-thing>=1 ; extra == "quant"',
            "pillow; extra == 'quant'",
            'polydit[video]; extra == "all"',
            'pytest; extra == "test"',
        ],
    )
    assert doctor._extras() == {"video": "installed", "quant": "lacks no-such-thing"}


def test_advice_is_about_what_was_found(examined: dict):
    fine = copy.deepcopy(examined)
    fine["video"]["av"] = True
    fine["system"]["free_disk_gb"] = 50.0
    fine["tasks"] = {"super-resolution": []}
    fine["devices"]["nvidia_driver"] = None
    assert doctor.advise(fine) == {}
    bad = copy.deepcopy(fine)
    bad["video"] |= {"av": "cannot be imported: ImportError", "decord": False}
    bad["system"]["free_disk_gb"] = 1.0
    bad["tasks"]["ruin"] = "cannot be loaded: no module"
    bad["devices"] |= {"nvidia_driver": "550.54", "cuda": False, "cuda_build": None}
    advice = doctor.advise(bad)
    assert set(advice) == {"video", "disk", "ruin", "cuda"}
    assert advice["cuda"].startswith("an NVIDIA driver is there, but torch is built without CUDA")
    bad["devices"]["cuda_build"] = "12.8"
    assert "cannot use the driver" in doctor.advise(bad)["cuda"]


def test_the_driver_is_told_by_its_file(tmp_path: Path):
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    )
    assert doctor._driver(file) == "550.54.15"
    assert doctor._driver(tmp_path / "none") is None


def test_what_is_printed_has_no_empty_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        doctor, "examine", lambda: {"full": {"yes": True, "list": [], "none": None}, "empty": {}}
    )
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["full:"], ["yes", "yes"], ["list", "none"], ["none", "-"]]
