"""``polydit <task> demo``: the web demo, on this machine only."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..errors import PolyditError
from ..open_pipeline import choose_weights
from ..task import Option, TaskSpec, resolve
from .parser import Parser, add_options

__all__ = ["demo_parser", "run_demo", "serve"]

MAX_UPLOAD = "100mb"


def run_demo(task: TaskSpec, words: Sequence[str]) -> int:
    """Build the task's gradio page and serve it on 127.0.0.1 until Ctrl-C."""
    parser = demo_parser(f"polydit {task.name} demo")
    add_options(
        parser,
        [
            Option(
                "--weights",
                "path",
                None,
                "folder or hub id of a saved pipeline; default: the small weights of the task",
                metavar="DIR",
            )
        ],
    )
    options = parser.parse_args(words)
    if task.demo is None:
        raise PolyditError(f"{task.name}: comes without a demo")
    build, weights = task.demo, options.weights

    def page() -> Any:
        from ..load import locate

        # What is wrong with them is said before the page opens, not when its button is pressed.
        locate(str(choose_weights(task, weights)), task.name)
        return resolve(build)(weights=weights)

    return serve(page, options)


def demo_parser(prog: str) -> Parser:
    """The options of every command that serves a page."""
    parser = Parser(prog, "Serve the web demo on 127.0.0.1, for this machine only.")
    add_options(parser, [Option("--port", "int", 7860, "port of the page", minimum=1)])
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


def serve(build: Callable[[], Any], options: argparse.Namespace) -> NoReturn:
    """Serve the page that `build` gives, on 127.0.0.1, not shared, nothing reported to anyone; Ctrl-C ends the process.

    Args:
        build: gives a ``gradio.Blocks``.
        options: as `demo_parser` gives them.

    Raises:
        PolyditError: the port cannot be had.
        ModuleNotFoundError: gradio is not installed.
    """
    if options.port > 65535:
        raise PolyditError(f"--port {options.port}: ports end at 65535")
    _check_port(options.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    page = build()
    page.launch(
        server_name="127.0.0.1",
        server_port=options.port,
        share=False,
        inbrowser=options.open,
        max_file_size=MAX_UPLOAD,
        footer_links=["api", "gradio", "settings"],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"polydit: http://127.0.0.1:{options.port} (Ctrl-C stops it)", flush=True)
    page.block_thread()
    # At an ordinary exit the thread of a run that is under way would be torn down inside of torch, which aborts the
    # process with a core dump.
    atexit._run_exitfuncs()  # temporary files
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


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
