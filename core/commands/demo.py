"""``polydit <task> demo``: the web demo, on this machine only."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import PolyditError
from ..task import Option, TaskSpec, resolve
from .parser import Parser, add_options

__all__ = ["run_demo"]


def run_demo(task: TaskSpec, words: Sequence[str]) -> int:
    """Build the task's gradio page and serve it on 127.0.0.1 until Ctrl-C."""
    parser = Parser(f"polydit {task.name} demo", "Serve the web demo on 127.0.0.1, for this machine only.")
    add_options(parser, [Option("--port", "int", 7860, "port of the page", minimum=1)])
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args(words)
    if options.port > 65535:
        raise PolyditError(f"--port {options.port}: ports end at 65535")
    _check_port(options.port)
    try:
        import gradio  # noqa: F401 - the page needs it; missing it should not look like a defect of the page
    except ModuleNotFoundError as error:
        raise PolyditError("demo: gradio is not installed; pip install 'polydit[demo]'") from error
    if task.demo is None:
        raise PolyditError(f"{task.name}: comes without a demo")
    page = resolve(task.demo)()
    page.launch(
        server_name="127.0.0.1",
        server_port=options.port,
        share=False,
        inbrowser=options.open,
        max_file_size="100mb",
    )
    return 0


def _check_port(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PolyditError(
                f"--port {port}: in use or not allowed ({error.strerror}); choose another one"
            ) from error
