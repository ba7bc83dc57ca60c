"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

from polydit.core.devices import check_device_name, choose_device, choose_dtype
from polydit.core.errors import PolyditError


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "CPU", ""])
def test_what_is_no_device_is_refused(name: str):
    with pytest.raises(PolyditError, match="no such device; choose auto, cpu, cuda, cuda:N or mps"):
        check_device_name(name)


def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_an_absent_device_is_named_with_those_present(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(PolyditError, match=r"--device cuda:1: not on this machine.*; there is cpu, cuda:0"):
        choose_device("cuda:1")
    with pytest.raises(PolyditError, match="--device mps: not on this machine; there is cpu, cuda:0"):
        choose_device("mps")


def test_precision_by_device(monkeypatch: pytest.MonkeyPatch):
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, answer=supported: answer
        )
        assert choose_dtype("auto", torch.device("cuda")) == expected
