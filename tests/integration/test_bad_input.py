"""Everything that a user can get wrong, through the command: one line that names it, the exit code, nothing half done.

Item                                  Here                                          And, in parts, in
------------------------------------  --------------------------------------------  --------------------------------
missing file, folder                  test_inputs, test_training_data               core/test_inputs, test_cli
unreadable file                       test_a_file_without_permission, test_inputs   core/data/test_images
empty folder                          test_inputs, test_training_data               core/test_inputs
zero-byte, truncated picture          test_inputs                                   core/data/test_images
  among several / while training      (there)                                       test_predict / tasks test_data
zero-byte, truncated video            (there)                                       tasks test_predict
1x1 picture                           test_one_pixel
40 megapixels within 6 GB             test_forty_megapixels (slow)
decompression bomb                    test_inputs, test_training_data               core/data/test_images
NaN in weights, LoRA, checkpoint      test_nan                                      core/test_load
weights of another task, backbone     test_weights_of_something_else                core/test_load, test_predict
checkpoint of another task, backbone  test_checkpoint_of_something_else             core/training/test_fit
LoRA of another model                 test_lora_of_another_model                    core/adapters/test_lora
unknown option, key                   test_unknown_words                            test_cli, core/training/test_config
unknown device                        test_devices                                  core/test_devices, test_cli
--scale 5                             test_factors
disk full                             test_disk_full_*                              core/media/test_writer
Ctrl-C during training                test_ctrl_c_during_training                   core/training/test_fit
Ctrl-C during predict                 test_ctrl_c_during_predict                    core/media/test_writer, tasks
existing output                       test_existing_output                          test_predict
pickles                               test_pickles_are_refused_and_not_run          core/test_load, core/training
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from polydit.core.adapters import LoraOptions, inject, save_lora
from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.core.load import load
from polydit.core.training.checkpoints import read_checkpoint

TASK = "super-resolution"
FIT = [
    "fit", "--config", "small.yaml", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true",
    "--trainer.max_time=null", "--trainer.max_steps=3", "--trainer.logger=false",
    "--model.backbone.depth=1", "--model.backbone.hidden_size=16",
    "--model.backbone.num_heads=1", "--data.path=pictures", "--data.crop=48", "--data.batch_size=2",
    "--data.num_workers=0", "--data.samples_per_epoch=100",
]  # fmt: skip
RUN = Path("runs/super_resolution/made")


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width + height)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and a run of three steps on them: its pipeline and its checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "pictures").mkdir()
    for number in range(2):
        noise(60, 56 + number).save(folder / f"pictures/p{number}.png")
    with contextlib.chdir(folder):
        assert main([TASK, *FIT, "--name", "made"]) in (0, None)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, with a picture ``a.png`` and copies of what was made."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    noise(8, 6).save("a.png")
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``run("predict", "--input", ...)`` gives the exit code and the one line of the complaint."""

    def call(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([TASK, *map(str, words)])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        complaint = [line for line in said.splitlines() if line.startswith("polydit: ")]
        if code == 2:
            assert len(complaint) == 1, said
            # After what a training has said until then, the complaint is the last line.
            assert said.splitlines()[-1] == complaint[0]
        return code, complaint[-1] if complaint else said

    return call


@pytest.fixture
def predict(run: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """``predict("a.png", "--scale", 5)``, into ``out`` with the weights of ``made`` unless others are named."""

    def call(source: object, *words: object) -> tuple[int, str]:
        weights = [] if "--weights" in words else ["--weights", RUN / "pipeline"]
        return run("predict", "--input", source, "--output", "out", "--device", "cpu", *weights, *words)

    return call


def written(folder: str = "out") -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else []


# -- pictures ------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a kilobyte that says it is as large as this."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def half(suffix: str) -> bytes:
    file = Path(f"whole{suffix}")
    noise(64, 64).save(file)
    return file.read_bytes()[: file.stat().st_size // 2]


INPUTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone.png": (lambda path: None, "--input gone.png: no such file or folder"),
    "empty": (lambda path: path.mkdir(), "--input empty: no image or video in this folder, no files; read are .avi, "),
    "none/*.png": (lambda path: None, "--input none/*.png: the pattern matches no file; quote it"),
    "zero.png": (lambda path: path.write_bytes(b""), "zero.png: is empty (0 bytes); replace the file"),
    "cut.png": (lambda path: path.write_bytes(half(".png")), "cut.png: cut short or damaged ("),
    "cut.jpg": (lambda path: path.write_bytes(half(".jpg")), "cut.jpg: cut short or damaged ("),
    "text.png": (lambda path: path.write_text("no picture"), "text.png: not a picture that can be read, or cut short"),
    "bomb.png": (
        lambda path: path.write_bytes(bomb(60000, 60000)),
        "bomb.png: 60000x60000 is 3600 megapixels, over the limit of 200; reduce it first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str, predict):
    make, message = INPUTS[name]
    make(Path(name))
    code, line = predict(name)
    assert code == 2
    assert line.startswith(f"polydit: error: {message}")
    assert written() == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission(predict):
    Path("a.png").chmod(0)
    assert predict("a.png") == (
        2,
        "polydit: error: a.png: cannot be read (Permission denied); check its permissions",
    )


def test_a_file_that_the_system_does_not_give(predict, monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert predict("a.png") == (
        2,
        "polydit: error: a.png: cannot be read (Permission denied); check its permissions",
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "--data.path there: no such file or folder; give one of pictures, or make one with `polydit c"),
        (lambda: Path("there").mkdir(), "there: no pictures in this folder; give png, jpg"),
        (
            lambda: (Path("there").mkdir(), Path("there/zero.png").touch()),
            "there: none of 1 pictures can be used; there/zero.png: is empty (0 bytes)",
        ),
        (
            lambda: (Path("there").mkdir(), Path("there/b.png").write_bytes(bomb(60000, 60000))),
            "there: none of 1 pictures can be used; there/b.png: 60000x60000 is 3600 megapixels",
        ),
        (
            lambda: (Path("there").mkdir(), noise(1, 1).save("there/one.png")),
            "there: none of 1 pictures can be used; there/one.png: 1x1 is smaller than the crop of 48; ",
        ),
    ],
)  # fmt: skip
def test_training_data(make, message, run):
    make()
    code, line = run(*FIT, "--data.path=there", "--name", "new")
    assert code == 2
    assert line.startswith(f"polydit: error: {message}")
    assert written("runs/super_resolution") == ["made"]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_pixel(scale: int, predict):
    Image.new("RGB", (1, 1), (200, 30, 90)).save("one.png")
    code, _ = predict("one.png", "--scale", scale)
    assert code == 0
    result = np.asarray(Image.open("out/one.png"))
    assert result.shape == (scale, scale, 3)
    assert abs(result.astype(int) - (200, 30, 90)).max() < 60


FORTY = """
import resource, sys
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from polydit.core.cli import main
from polydit.core.conditioning import StreamDiT

real, calls, last = StreamDiT.forward, 0, int(sys.argv[1])

def forward(self, hidden_states, *arguments, **options):
    # Hundreds of tiles cost the same memory as a few: in a test, one in forty is computed.
    global calls
    calls += 1
    if calls == last:
        raise KeyboardInterrupt
    if calls % 40 == 1:
        return real(self, hidden_states, *arguments, **options)
    return Transformer2DModelOutput(sample=torch.zeros_like(hidden_states))

StreamDiT.forward = forward
code = main(sys.argv[2:])
print(calls, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("scale", "tiles", "code"), [(2, 0, 0), (4, 120, 130)])
def test_forty_megapixels(scale: int, tiles: int, code: int, tmp_path: Path, root: Path):
    """8000 x 5000, with the weights of the package: to 16000 x 10000, and the first rows of 32000 x 20000."""
    if not (root / "demos/weights/super_resolution/model_index.json").is_file():
        pytest.skip("no weights in this checkout")
    ramp = np.linspace(0, 255, 8000).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, :, None], (5000, 8000, 3))
    Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "large.png")
    words = [
        "--input",
        tmp_path / "large.png",
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
        "--scale",
        scale,
    ]
    done = subprocess.run(
        [sys.executable, "-c", FORTY, str(tiles), TASK, "predict", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1700,
    )
    assert done.returncode == code, done.stderr
    calls, peak = map(int, done.stdout.split())
    assert peak < 6e9
    assert calls == (tiles or 17 * 11)
    if tiles:
        assert list((tmp_path / "out").iterdir()) == []
    else:
        with Image.open(tmp_path / "out/large.png") as result:
            assert result.size == (8000 * scale, 5000 * scale)


# -- weights, checkpoints, LoRA ------------------------------------------------------------------------------


def spoil(state: dict[str, torch.Tensor], value: float = float("nan")) -> str:
    """Put a NaN into one tensor of a state dict; its name."""
    name = max(state, key=lambda key: state[key].numel())
    state[name].view(-1)[-1] = value
    return name


def lora_file(path: str, **options: Any) -> Path:
    """A LoRA of the model in ``made``, or of a DiT with these options."""
    model = DiT(**options) if options else load(RUN / "pipeline").transformer
    inject(model, LoraOptions(rank=2))
    return save_lora(model, path)


def test_nan(predict, run):
    file = RUN / "pipeline/transformer/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = spoil(state)
    save_file(state, file)
    code, line = predict("a.png")
    assert (code, line) == (
        2,
        f"polydit: error: {file}: weight {name} of transformer holds NaN or infinity; use other weights",
    )
    code, line = run(*FIT, "--model.init_weights", RUN / "pipeline", "--name", "new")
    assert code == 2
    assert (
        f"--model.init_weights {RUN / 'pipeline'}: weight {name} holds NaN or infinity; use another file"
        in line
    )


def test_nan_in_a_lora(predict):
    file = lora_file("lora.safetensors")
    state = load_file(file)
    name = spoil(state, float("inf"))
    save_file(state, file)
    code, line = predict("a.png", "--lora", file)
    assert code == 2
    assert line.startswith(f"polydit: error: lora.safetensors: {name} holds NaN or infinity; ")
    assert written() == []


def test_nan_in_a_checkpoint(run):
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    name = spoil(checkpoint["state_dict"])
    torch.save(checkpoint, "nan.ckpt")
    expected = f"nan.ckpt: weight {name} holds NaN or infinity; use another checkpoint, such as best.ckpt"
    for words in (
        ["export", "--output", "new"],
        [*FIT, "--trainer.max_steps=9", "--name", "new"],
        ["validate", *FIT[1:]],
    ):
        assert run(*words, "--ckpt_path", "nan.ckpt") == (2, f"polydit: error: {expected}")
    assert not Path("new").exists()
    assert not Path("runs/super_resolution/new").exists()


def test_weights_of_something_else(predict, dummy_weights: Path):
    assert predict("a.png", "--weights", dummy_weights) == (
        2,
        f"polydit: error: {dummy_weights}: these are weights of dummy, not of super-resolution; "
        "use `polydit dummy`, or other --weights",
    )
    config = RUN / "pipeline/transformer/config.json"
    config.write_text(config.read_text().replace('"depth": 1', '"depth": 2'))
    code, line = predict("a.png")
    assert code == 2
    assert line.startswith(f"polydit: error: {RUN / 'pipeline/transformer'}: lacks ")
    assert "of StreamDiT (blocks.1." in line
    assert line.endswith("these are weights of another backbone or version")


@pytest.mark.parametrize("command", ["fit", "validate", "export"])
def test_checkpoint_of_something_else(command: str, run):
    path = RUN / "checkpoints/last.ckpt"
    words = {
        "fit": [*FIT, "--name", "new"],
        "validate": ["validate", *FIT[1:]],
        "export": ["export", "--output", "new"],
    }[command]
    if command != "export":  # which builds what the checkpoint says
        code, line = run(*words, "--ckpt_path", path, "--model.backbone.depth=2")
        assert code == 2
        assert "the checkpoint lacks " in line
        assert "(backbone.blocks.1." in line
        assert "of this StreamDiT; use the config it was trained with" in line
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["polydit"]["task"] = "compression"
    torch.save(checkpoint, "other.ckpt")
    code, line = run(*words, "--ckpt_path", "other.ckpt")
    assert code == 2
    assert "trained for " in line
    assert "compression, not super-resolution; use " in line
    assert not Path("new").exists()


def test_lora_of_another_model(predict):
    other = lora_file(
        "other.safetensors", input_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=3, num_heads=1
    )
    before = (RUN / "pipeline/transformer/diffusion_pytorch_model.safetensors").read_bytes()
    code, line = predict("a.png", "--lora", other)
    assert code == 2
    assert line == (
        "polydit: error: other.safetensors: 4 of 6 modules are not in StreamDiT (it was trained on DiT): "
        "blocks.1.attn.proj, blocks.1.attn.qkv, blocks.2.attn.proj; use the weights it was trained on"
    )
    assert predict("a.png", "--lora", "gone.safetensors") == (
        2,
        "polydit: error: --lora gone.safetensors: no such file",
    )
    assert written() == []
    assert (RUN / "pipeline/transformer/diffusion_pytorch_model.safetensors").read_bytes() == before


class Code:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def pickled(name: str, how: str) -> Path:
    path = Path(name)
    if how == "torch":
        torch.save({"state_dict": Code()}, path)
    else:
        path.write_bytes(pickle.dumps(Code()))
    return path


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickles_are_refused_and_not_run(how: str, predict, run):
    for name in ("evil.ckpt", "evil.bin"):
        path = pickled(name, how)
        code, line = predict("a.png", "--weights", path)
        assert code == 2
        assert line.startswith(
            f"polydit: error: {name}: a pickled checkpoint, which could run code; a folder of "
        )
        for option in (["--output", "new"], [*FIT[1:], "--name", "new"]):
            code, line = run("export" if "new" in option[1] else "fit", *option, "--ckpt_path", path)
            assert code == 2
            assert line.startswith(
                f"polydit: error: {name}: holds more than tensors and could run code; refused"
            )
        code, line = run(*FIT, "--model.init_weights", path, "--name", "new")
        assert code == 2
        assert f"{name}: " in line
    for name in ("evil.safetensors", "evil.pt"):
        code, line = predict("a.png", "--lora", pickled(name, how))
        assert code == 2
        assert (
            line
            == f"polydit: error: {name}: is pickled, which could run code; refused, give a .safetensors LoRA"
        )
    weights = RUN / "pipeline/transformer/diffusion_pytorch_model.safetensors"
    weights.unlink()
    pickled(str(weights.with_suffix(".bin")), how)
    code, line = predict("a.png")
    assert code == 2
    assert line.startswith(
        f"polydit: error: {weights.with_suffix('.bin')}: pickled weights, which could run code, are"
    )
    assert not Path("ran").exists()
    pickle.loads(Path("evil.bin").read_bytes()) if how == "pickle" else torch.load(
        "evil.bin", weights_only=False
    )
    assert Path("ran").exists()  # the files do what the test says


# -- options -------------------------------------------------------------------------------------------------


def test_unknown_words(predict, run):
    code, line = predict("a.png", "--sacle", 4)
    assert code == 2
    assert line.startswith(
        "polydit: error: --sacle: no such option (did you mean --scale?); `polydit super-resolution predict --help`"
    )
    code, line = run(*FIT, "--data.batchsize=2")
    assert (code, line) == (
        2,
        "polydit: error: --data.batchsize: no such option; did you mean --data.batch_size?",
    )
    code, line = run(*FIT, "--model.backbone.hiden_size=2")
    assert code == 2
    assert "hiden_size" in line
    assert "did you mean" in line
    Path("wrong.yaml").write_text("model:\n  residual_scal: 0.2\n")
    code, line = run(*FIT, "--config", "wrong.yaml")
    assert code == 2
    assert "model.residual_scal" in line
    assert "did you mean model.residual_scale?" in line
    assert written("runs/super_resolution") == ["made"]


def test_devices(predict, run):
    code, line = predict("a.png", "--device", "gpu")
    assert (code, line) == (
        2,
        "polydit: error: --device gpu: no such device; choose auto, cpu, cuda, cuda:N or mps",
    )
    code, line = predict("a.png", "--device", "cuda:99")
    assert code == 2
    assert line.startswith("polydit: error: --device cuda:99: not on this machine")
    assert "; there is cpu" in line
    code, line = run(*FIT, "--trainer.accelerator=gpuu")
    assert code == 2
    assert line.startswith("polydit: error: config section trainer: You selected an invalid accelerator name")
    assert line.endswith("; choose --trainer.accelerator auto or cpu")


def test_factors(predict, run):
    code, line = predict("a.png", "--scale", 5)
    assert code == 2
    assert line.startswith(
        "polydit: error: --scale: 5 is not one of 2, 3, 4; `polydit super-resolution predict --help`"
    )
    index = RUN / "pipeline/model_index.json"
    text = index.read_text()
    assert text.count("3,\n") == 1
    index.write_text(text.replace("3,\n", "", 1))
    code, line = predict("a.png", "--scale", 3)
    assert (code, line) == (
        2,
        "polydit: error: --scale 3: these weights know the factors 2, 4; choose one of them",
    )
    code, line = run(*FIT, "--data.scales", "{8: 1.0}")
    assert code == 2
    assert line.startswith("polydit: error: --data.scales: has factor 8, and the model is made for 2, 3, 4; ")


def test_existing_output(predict, run):
    assert predict("a.png")[0] == 0
    first = Path("out/a.png").stat().st_mtime_ns
    noise(8, 6).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save("a.png")
    code, line = predict("a.png")
    assert (code, line) == (0, "polydit: 1 kept as they were (--overwrite replaces them)")
    assert Path("out/a.png").stat().st_mtime_ns == first
    assert predict("a.png", "--overwrite")[0] == 0
    assert Path("out/a.png").stat().st_mtime_ns > first
    for output in (RUN / "pipeline", "a.png"):
        assert run("export", "--ckpt_path", RUN / "checkpoints/last.ckpt", "--output", output) == (
            2,
            f"polydit: error: {output}: exists already; choose another name or pass --overwrite",
        )
    assert run("predict", "--input", "a.png", "--output", "a.png", "--weights", RUN / "pipeline") == (
        2,
        "polydit: error: a.png: cannot make this folder (file exists); choose another --output",
    )


# -- a full disk ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond this, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_disk_full_in_predict(predict, monkeypatch):
    def open_full(path: Path, mode: str) -> Any:
        open(path, mode).close()
        return open("/dev/full", "wb")

    monkeypatch.setattr("polydit.core.media.writer.open", open_full, raising=False)
    assert predict("a.png") == (
        2,
        "polydit: error: out/a.png: the disk is full; free space or choose another --output",
    )
    assert written() == []


def test_disk_full_in_export(run):
    with largest_file(4000):
        card = ["--license", "mit", "--data-source", "noise"]
        code, line = run("export", "--ckpt_path", RUN / "checkpoints/last.ckpt", "--output", "new", *card)
    assert code == 2
    assert line.startswith("polydit: error: new: cannot be written (")
    assert line.endswith("File too large (os error 27)); make room and export again")
    assert sorted(p.name for p in Path().iterdir()) == ["a.png", "pictures", "runs"]


def test_disk_full_while_training_and_while_exporting_a_lora(run):
    checkpoint = RUN / "checkpoints/last.ckpt"
    before = checkpoint.read_bytes()
    with largest_file(len(before) // 2):
        code, line = run(*FIT, "--trainer.max_steps=5", "--name", "made", "--ckpt_path", "last")
    assert code == 2
    assert line == (
        f"polydit: error: {checkpoint}: cannot be written (File too large); the checkpoint before it is kept. "
        "Make room, then resume with --ckpt_path last"
    )
    assert checkpoint.read_bytes() == before
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["last.ckpt"]
    # and there is enough room for everything but the adapter's file
    adapter = [
        "--model.init_weights",
        RUN / "pipeline",
        "--model.adapter.rank=8",
        "--model.adapter.targets=linear",
    ]
    assert run(*FIT, "--name", "lora", *adapter)[0] in (0, None)
    lora = Path("runs/super_resolution/lora")
    with largest_file(2000):
        code, line = run(
            "export", "--ckpt_path", lora / "checkpoints/last.ckpt", "--output", "new.safetensors"
        )
    assert code == 2
    assert line.startswith("polydit: error: new.safetensors: cannot be written (")
    assert line.endswith("; make room or choose another --output")
    assert sorted(p.name for p in Path().iterdir()) == ["a.png", "pictures", "runs"]


# -- Ctrl-C --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, ended in any case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "polydit.core.cli", TASK, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_during_training(place: Path, run):
    """The running step ends, its checkpoint is written, and the command that is printed goes on from it."""
    last = Path("runs/super_resolution/new/checkpoints/last.ckpt")
    with started(
        *FIT, "--trainer.max_steps=100000", "--checkpoint.every_n_steps=1", "--name", "new"
    ) as process:
        wait_for(last.exists, process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopping after this step (again: at once, without a checkpoint of it)" in said
    lines = [line for line in said.splitlines() if line.startswith("interrupted; ")]
    assert len(lines) == 1
    start, command = lines[0].split(", go on with: ")
    assert start == f"interrupted; {last} is kept"
    assert [p.name for p in last.parent.iterdir()] == ["last.ckpt"]
    step = read_checkpoint(last)["global_step"]
    assert step >= 1
    words = shlex.split(command)
    assert words[:2] == ["polydit", TASK]
    code, _ = run(*words[2:], "--trainer.max_steps", step + 2)
    assert code in (0, None)
    assert read_checkpoint(last)["global_step"] == step + 2


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_during_predict(place: Path):
    """The picture that was complete stays, of the one in work nothing."""
    Path("photos").mkdir()
    noise(4, 4).save("photos/a.png")
    noise(150, 3000).save("photos/b.png")
    words = ["--input", "photos", "--output", "out", "--weights", RUN / "pipeline", "--tile", "128"]

    def half_done() -> bool:
        return any(p.name.startswith(".b.png.") and p.stat().st_size > 10_000 for p in Path("out").glob(".*"))

    with started("predict", *words) as process:
        wait_for(half_done, process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (130, "polydit: interrupted\n")
    assert written() == ["a.png", "results.json"]
    assert Image.open("out/a.png").size == (16, 16)
