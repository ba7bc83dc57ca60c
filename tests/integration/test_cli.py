"""The command line itself: help, lists, complaints, exit codes. The task is one from outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polydit import __version__
from polydit.core import cli, doctor
from polydit.core.cli import main
from polydit.core.errors import PolyditError

QUICK = (
    (),
    ("--help",),
    ("list",),
    ("doctor", "--help"),
    ("corpus", "build", "--help"),
    ("shards", "build", "--help"),
    ("super-resolution", "--help"),
    ("super-resolution", "predict", "--help"),
    ("super-resolution", "export", "--help"),
)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_help_and_list_import_nothing_heavy(words: tuple[str, ...]):
    probe = (
        "import sys; from polydit.core.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'diffusers', 'lightning', 'jsonargparse', 'PIL'} & set(sys.modules);"
        "sys.exit(str(sorted(heavy)) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "words", [("--help",), ("super-resolution", "predict", "--help"), ("list",)], ids=" ".join
)
def test_help_answers_at_once(words: tuple[str, ...]):
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "polydit.core.cli", *words], capture_output=True, timeout=60, check=True
        )
        times.append(time.perf_counter() - begin)
    # Half a second on an idle machine; the suite runs on busy ones. Importing torch alone takes longer than this.
    assert min(times) < 1.5


def test_import_polydit_imports_no_torch():
    probe = (
        "import sys, polydit, polydit.core, polydit.tasks, polydit.tasks.super_resolution;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("name", ["super-resolution"])
def test_predict_imports_no_training_library(name: str):
    probe = (
        "import sys; from polydit.core import load, task, media, adapters; found = task.find_task(sys.argv[1]);"
        "task.resolve(found.predict), task.resolve(found.pipeline);"
        "heavy = {'lightning', 'kornia', 'skimage', 'gradio', 'matplotlib', 'tensorboard'} & set(sys.modules);"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, name], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr  # each of them costs seconds


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"polydit {__version__}\n"


def test_list_names_systems_and_configs_of_an_installed_task(
    eighth_task: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "super-resolution" in shown
    assert "Dusk" in shown
    assert "dummy/small.yaml" in shown


@pytest.fixture
def broken_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "ruin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ruin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[polydit.tasks]\nruin = ruin_missing:TASK\nnumber = polydit:__version__\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("broken_task")
def test_a_broken_plugin_is_one_line_and_does_no_harm(capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ruin: cannot be loaded from ruin: ModuleNotFoundError: No module named 'ruin_missing'" in lines
    assert "number: cannot be loaded from ruin: polydit:__version__ is a str, not a TaskSpec" in lines
    assert main(["ruin", "predict"]) == 2
    assert "the task from ruin cannot be loaded: ModuleNotFoundError" in last_line(capsys)
    assert main(["super-resolution", "--help"]) == 0


COMPLAINTS = [
    (["super-resoltion", "fit"], "super-resoltion: no such command (did you mean super-resolution?)"),
    (["dummy", "predct"], "predct: no such command (did you mean predict?)"),
    (
        ["dummy", "--config", "a.yaml", "fit"],
        "--config: options follow the command: polydit dummy fit --config a.yaml",
    ),
    (
        ["dummy", "--config=a.yaml", "check"],
        "--config: options follow the command: polydit dummy check --config a.yaml",
    ),
    (["dummy", "--seed", "predict"], "--seed: options follow the command: polydit dummy predict --seed ..."),
    (["dummy", "predict", "--output", "o"], "--input: required"),
    (
        ["dummy", "predict", "--input", "i", "--output", "o", "--stesp", "3"],
        "--stesp: no such option (did you mean --steps?)",
    ),
    (
        ["dummy", "predict", "--input", "i", "--output", "o", "--see", "3"],
        "--see: no such option (did you mean --seed?)",
    ),
    (
        ["dummy", "predict", "--input", "i", "--output", "o", "--scale", "5"],
        "--scale: 5 is not one of 2, 3, 4",
    ),
    (["dummy", "predict", "--input", "i", "--output", "o", "--steps", "0"], "--steps: 0 is less than 1"),
    (
        ["dummy", "predict", "--input", "i", "--output", "o", "--steps", "1.5"],
        "--steps: '1.5' is not a whole number",
    ),
    (
        ["dummy", "predict", "--input", "i", "--output", "o", "--amount", "nan"],
        "--amount: nan is not a finite number",
    ),
    (
        ["dummy", "predict", "--input", "i", "--output", "o", "--dtype", "float"],
        "--dtype: float is not one of auto",
    ),
    (
        ["dummy", "predict", "--input", "i", "--output", "o", "--device", "tpu"],
        "--device tpu: no such device",
    ),
    (["dummy", "predict", "--input", "i", "--output", "o", "--seed"], "--seed: a value must follow"),
    (
        ["dummy", "predict", "--input", "gone.png", "--output", "o"],
        "--input gone.png: no such file or folder",
    ),
    (["dummy", "fit", "--config", "gone.yaml"], "--config gone.yaml: no such file"),
    (
        ["dummy", "fit", "--config", "smal"],
        "--config smal: no such file (did you mean small.yaml?); shipped with dummy are small.yaml",
    ),
    (["dummy", "export", "--ckpt_path", "gone.ckpt", "--output", "o"], "--ckpt_path gone.ckpt: no such file"),
    (["super-resolution", "demo", "--port", "70000"], "--port 70000: ports end at 65535"),
    (["list", "everything"], "everything: one word too many"),
    (["corpus"], None),
    (["corpus", "biuld"], "biuld: no such command (did you mean build?)"),
]


@pytest.mark.parametrize(
    ("words", "line"), COMPLAINTS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
@pytest.mark.usefixtures("eighth_task")
def test_a_mistake_is_one_line_with_the_nearest_word(
    words: list[str], line: str | None, capsys: pytest.CaptureFixture[str]
):
    code = main(words)
    shown = capsys.readouterr()
    if line is None:
        assert code == 0
        return
    assert code == 2
    assert shown.out == ""
    assert shown.err.startswith(f"polydit: error: {line}")
    assert shown.err.count("\n") == 1


def test_commands_of_a_task_get_their_options(eighth_task: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["dummy", "greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


NO_GRADIO = ModuleNotFoundError("No module named 'gradio'", name="gradio")
NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
FAILURES = [
    (PolyditError("a.png: broken;\n  get it again"), 2, "polydit: error: a.png: broken; get it again"),
    (FileNotFoundError(2, "No such file", "a.png"), 2, "polydit: error: a.png: no such file or folder"),
    (PermissionError(13, "Permission denied", "/closed/a"), 2, "polydit: error: /closed/a: permission denied"),
    (IsADirectoryError(21, "Is a directory", "a"), 2, "polydit: error: a: is a folder, and a file is needed"),
    (OSError(28, "No space left on device", "o/a.png"), 2, "polydit: error: o/a.png: the disk is full"),
    (NO_GRADIO, 2, "polydit: error: gradio is not installed; pip install 'polydit[demo]'"),
    (NO_MEMORY, 2, "polydit: error: out of memory"),
    (MemoryError(), 2, "polydit: error: out of memory"),
    (KeyboardInterrupt(), 130, "polydit: interrupted"),
    (SystemExit(130), 130, None),
    (SystemExit("words"), 2, "polydit: error: words"),
    (ZeroDivisionError("division by zero"), 1, "polydit: error: unexpected ZeroDivisionError: division by zero; "),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "line"), FAILURES, ids=lambda value: type(value).__name__)
def test_failures_end_in_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setitem(cli._COMMANDS, "list", fail)
    assert main(["list"]) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if line is None:
        assert shown == ""
    else:
        assert shown.startswith(line)
        assert shown.count("\n") == 1
    if isinstance(error, Exception):
        assert main(["list", "--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "polydit.core.cli", "list"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""


def test_doctor_tells_versions_and_hides_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    home = Path(sys.executable).parent.parent  # so that something must be masked
    monkeypatch.setattr(Path, "home", lambda: home)
    assert main(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert found["polydit"]["version"] == __version__
    assert found["packages"]["torch"].startswith("2.")
    assert found["system"]["executable"].startswith("~")
    assert found["pictures"]["jpg"] is True
    assert "super-resolution" in found["tasks"]
    assert str(home) not in text
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_doctor_masks_other_accounts():
    assert doctor.mask({"a": ["/home/ada/x", "C:\\Users\\ada\\x", 3]}) == {
        "a": ["/home/***/x", "C:\\Users\\***\\x", 3]
    }


def test_check_lists_every_problem_at_once(eighth_task: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["dummy", "check"]) == 0
    shown = capsys.readouterr().out
    assert "model: DiT, 10,252 parameters" in shown
    assert "train data: 4 samples in 2 batches; a batch is tensor (2, 3, 4, 4)" in shown
    assert "no problem found" in shown
    assert main(["dummy", "check", "--data.folder", "gone"]) == 2
    shown = capsys.readouterr().out
    assert "problem: --data.folder gone: no such folder" in shown
    assert main(["dummy", "check", "--model.gradd", "1"]) == 2
    assert "problem: --model.gradd: no such option" in capsys.readouterr().out


def test_demo_is_not_offered_where_there_is_none(eighth_task: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["dummy", "demo"]) == 2
    assert "demo: no such command" in last_line(capsys)
