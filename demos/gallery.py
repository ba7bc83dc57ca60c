"""One page over all installed tasks: what they are, and the demo of each as a tab."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polydit.core.commands.demo import demo_parser, serve
from polydit.core.commands.failures import explain
from polydit.core.task import BrokenTask, TaskSpec, find_tasks, resolve

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["build", "main", "overview"]


def overview(tasks: Sequence[TaskSpec], broken: Sequence[BrokenTask] = ()) -> str:
    """What is installed, in Markdown."""
    lines = [
        "# PolyDiT",
        "",
        "One diffusion-transformer core; each task runs on this machine, in its own tab.",
        "",
    ]
    for task in tasks:
        lines += [f"### {_title(task)}", "", task.summary, ""]
        if not task.weights_at_hand():
            lines += [f"No weights came with it; `polydit {task.name} fit` trains some.", ""]
        if not task.demo:
            lines += [f"It has no page; use `polydit {task.name} predict`.", ""]
        if task.systems:
            lines += ["| system | paper |", "| --- | --- |"]
        for system in task.systems:
            paper = (
                f"[{system.title}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else system.title
            )
            lines.append(f"| {system.name} | {paper} |")
        lines.append("")
    lines += [f"- {task.name}: cannot be loaded ({task.reason})" for task in broken]
    return "\n".join(lines)


def build() -> gr.Blocks:
    """Build the page; a demo that cannot be built shows why in its tab."""
    import gradio as gr

    found, broken = find_tasks()
    tasks = list(found.values())
    # First, as blocks that are made inside others would be placed twice.
    demos = [(task, _demo(task)) for task in tasks if task.demo]
    with gr.Blocks(title="PolyDiT", analytics_enabled=False, delete_cache=(3600, 86400)) as page, gr.Tabs():
        with gr.Tab("Tasks"):
            gr.Markdown(overview(tasks, broken))
        for task, demo in demos:
            with gr.Tab(_title(task)):
                if isinstance(demo, str):
                    gr.Markdown(demo)
                else:
                    demo.render()
    return page


def _title(task: TaskSpec) -> str:
    return task.name.capitalize()


def _demo(task: TaskSpec) -> gr.Blocks | str:
    """The demo of a task, or why there is none: a task of others must not take the page down."""
    try:
        return resolve(task.demo or "")()
    except Exception as error:
        line = explain(error) or f"{type(error).__name__}: {error}"
        return f"This demo cannot be shown: {line}"


def main(words: Sequence[str] | None = None) -> int:
    """Serve the page, as ``make serve`` does."""
    try:
        return serve(build, demo_parser("python -m polydit.demos.gallery").parse_args(words))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"polydit: error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
