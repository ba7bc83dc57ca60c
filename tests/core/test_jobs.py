"""What predict has to do, from inputs or from a table."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from polydit.core.errors import PolyditError
from polydit.core.jobs import find_jobs
from polydit.core.predict import predict_parser
from polydit.core.results import earlier_record
from polydit.core.task import Option, TaskSpec

TASK = TaskSpec(
    name="dressing",
    package="dressing",
    summary="Dress people.",
    systems=(),
    module="",
    datamodule="",
    pipeline="",
    predict="",
    demo=None,
    default_weights=None,
    default_config=None,
    predict_options=(
        Option("--garment", "path", None, "what to put on"),
        Option("--amount", "float", 1.0, "how much", minimum=0),
        Option("--repaint", "bool", True, "keep the rest"),
    ),
    outputs=("{stem}_{garment_stem}.png",),
    input_flag="--person",
    table="--pairs",
)


def parsed(*words: object) -> Namespace:
    return predict_parser(TASK).parse_args([*map(str, words), "--output", "out"])


@pytest.fixture
def table(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        file = tmp_path / "pairs.csv"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_the_input_has_two_names(tmp_path: Path):
    photo = tmp_path / "a.png"
    photo.touch()
    for flag in ("--input", "--person"):
        (job,) = find_jobs(TASK, parsed(flag, photo, "--amount", 2)).jobs
        assert (job.source, job.options.amount, job.row) == (photo, 2.0, {})


def test_rows_replace_what_the_command_says(table: Any, tmp_path: Path):
    file = table("person, garment, amount, repaint\na.png, shirt.jpg, 0.5, no\n/b.png, /c/shirt.jpg, ,\n\n")
    options = parsed("--pairs", file, "--amount", 3)
    first, second = find_jobs(TASK, options).jobs
    assert first.source == tmp_path / "a.png"
    assert (first.options.garment, first.options.amount) == (tmp_path / "shirt.jpg", 0.5)
    assert first.options.repaint is False
    assert first.row == {"garment": tmp_path / "shirt.jpg", "amount": 0.5, "repaint": False}
    assert (second.source, second.options.garment) == (Path("/b.png"), Path("/c/shirt.jpg"))
    assert (second.options.amount, second.options.repaint) == (3.0, True)
    assert options.amount == 3.0


def test_rows_with_the_same_results_clash(table: Any, tmp_path: Path):
    file = table("person,garment\na.png,x.png\na.png,y.png\nb/a.png,x.jpg\n")
    jobs = find_jobs(TASK, parsed("--pairs", file)).jobs
    assert [job.clash for job in jobs] == [None, None, tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("person,garmet\n", r"column 'garmet' is unknown \(did you mean garment\?\)"),
        ("garment\nx.png\n", "has no column 'person'"),
        ("", "has no column 'person'"),
        ("person,garment\n", "has no rows"),
        ("person,garment\n,x.png\n", "line 2: names no person"),
        ("person,amount\na.png,much\n", "line 2: --amount: 'much' is not a number"),
        ("person,amount\na.png,-1\n", "line 2: --amount: -1 is less than 0"),
        ("person,repaint\na.png,perhaps\n", "line 2: --repaint 'perhaps': give true or false"),
        ("person,garment\na.png,x.png,y.png\n", "line 2 has more cells than there are columns"),
    ],
)
def test_a_damaged_table_is_one_line(table: Any, text: str, line: str):
    with pytest.raises(PolyditError, match=line) as caught:
        find_jobs(TASK, parsed("--pairs", table(text)))
    assert "\n" not in str(caught.value)


def test_either_inputs_or_a_table(table: Any, tmp_path: Path):
    with pytest.raises(PolyditError, match="--person or --pairs: required"):
        find_jobs(TASK, parsed())
    file = table("person\na.png\n")
    with pytest.raises(PolyditError, match="names its inputs itself; leave out --person"):
        find_jobs(TASK, parsed("--pairs", file, "--person", file))
    with pytest.raises(PolyditError, match="cannot be read as a table"):
        find_jobs(TASK, parsed("--pairs", tmp_path / "none.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolyditError, match="cannot be read as a table"):
        find_jobs(TASK, parsed("--pairs", tmp_path / "binary.csv"))


def test_of_several_records_that_of_the_files_is_taken():
    records = [{"input": "a.png", "files": ["a_x.png"]}, {"input": "a.png", "files": ["a_y.png"], "n": 1}]
    assert earlier_record(records, Path("a.png"), [Path("out/a_y.png")])["n"] == 1
    assert earlier_record(records, Path("b.png"), [Path("out/b.png")]) == {"input": "b.png"}
