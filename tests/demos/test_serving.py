"""How a page ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra demo is not installed")

PAGE = """
import sys, tempfile
import gradio as gr
import torch
from polydit.core.commands.demo import demo_parser, serve

kept = tempfile.TemporaryDirectory(prefix="kept-", dir=sys.argv[2])

def long_run(number: float = 0) -> float:
    print("running", flush=True)
    while True:
        torch.randn(400, 400) @ torch.randn(400, 400)

def build():
    with gr.Blocks() as page:
        number = gr.Number(0)
        gr.Button("Go").click(long_run, number, number, api_name="go")
    return page

raise SystemExit(serve(build, demo_parser("page").parse_args(["--port", sys.argv[1]])))
"""


def test_ctrl_c_ends_a_page_in_the_middle_of_a_run(tmp_path: Path):
    import socket

    from gradio_client import Client

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", PAGE, str(port), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert "Ctrl-C" in process.stdout.readline()
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        client.submit(0, api_name="/go")
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, rest
    assert list(tmp_path.iterdir()) == [], "temporary files are removed"
