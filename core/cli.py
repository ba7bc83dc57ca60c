"""The ``polydit`` command: what was asked for, who does it, and how a failure is told."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from .. import __version__
from .commands import Menu, Parser, add_options
from .commands.failures import explain
from .task import TaskSpec, find_task, find_tasks, resolve

__all__ = ["main"]

EXIT_FAILURE = 2
EXIT_BUG = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``polydit``; those of the process when ``None``.

    Returns:
        0, 2 when something that the user can put right went wrong, 130 after Ctrl-C, 1 for a defect of PolyDiT.
    """
    # Read when torch is loaded. OpenMP's threads otherwise wait by spinning: beside another busy process, work of one
    # second then takes half a minute.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if debug:  # wherever it stood; every parser takes it at the end
        words = [*(word for word in words if word != "--debug"), "--debug"]
    try:
        code = _run(words)
        sys.stdout.flush()  # a reader that went away is noticed here, not at the interpreter's exit
        return code
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        return _fail(str(stop.code))
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("polydit: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BUG
    except Exception as error:
        if debug:
            traceback.print_exc()
        line = explain(error)
        if line is not None:
            return _fail(line)
        lines = str(error).strip().splitlines()
        _fail(
            f"unexpected {type(error).__name__}: {lines[0] if lines else 'no message'}; "
            "--debug shows the trace, please report it with the output of `polydit doctor --json`"
        )
        return EXIT_BUG


def _fail(line: str) -> int:
    print(f"polydit: error: {line}", file=sys.stderr)
    return EXIT_FAILURE


def _run(words: list[str]) -> int:
    if words and words[0] in ("--version", "-V"):
        print(f"polydit {__version__}")
        return 0
    if words and words[0] in _COMMANDS:
        return _COMMANDS[words[0]](words[1:])
    tasks, broken = find_tasks()
    menu = Menu(
        prog="polydit",
        summary="One diffusion-transformer core, seven vision tasks: train, adapt with LoRA, run.",
        sections=(
            ("tasks", tuple((task.name, task.summary) for task in tasks.values())),
            (
                "commands",
                (
                    ("list", "tasks, their systems, the weights at hand"),
                    ("doctor", "environment, versions, devices"),
                    ("corpus", "gather openly licensed training material"),
                    ("shards", "pack pictures for training from a slow disk or an object store"),
                    ("lora", "look into a LoRA file, convert it for other tools"),
                ),
            ),
        ),
        epilog="\n".join(f"{task.name}: cannot be loaded ({task.reason})" for task in broken)
        or "polydit --version prints the version; --debug, anywhere, shows the trace of a failure.",
    )
    if words and words[0] in {task.name for task in broken}:
        find_task(words[0])  # says why it cannot be loaded
    chosen = menu.choose(words)
    if chosen is None:
        print(menu.help())
        return 0
    name, rest = chosen
    return run_task(tasks[name], rest)


def task_menu(task: TaskSpec) -> Menu:
    """The commands of a task."""
    rows = [
        ("check", "look at config and data before a step is run"),
        ("fit", "train, from scratch, from weights or with LoRA"),
        ("validate", "the held-out loss and metrics of a checkpoint"),
        ("test", "the same on the test data"),
        ("predict", "run on files"),
    ]
    if task.demo:
        rows.append(("demo", "the web demo, on this machine"))
    rows.append(("export", "a checkpoint as pipeline folder or LoRA file"))
    rows.append(("redundancy", "what changes from step to step, and a plan for predict --cache"))
    rows.append(("learn-cache", "a cache that learns on these weights, for predict --cache"))
    rows += [(command.name, command.help) for command in task.commands]
    width = max((len(system.name) for system in task.systems), default=0) + 2
    systems = "\n".join(
        f"  {system.name:<{width}}{system.title}" + (f" (arXiv {system.arxiv})" if system.arxiv else "")
        for system in task.systems
    )
    return Menu(
        prog=f"polydit {task.name}",
        summary=task.summary,
        sections=(("commands", tuple(rows)),),
        epilog=f"systems:\n{systems}" if systems else "",
    )


def run_task(task: TaskSpec, words: list[str]) -> int:
    """Run ``polydit <task> <words>``."""
    menu = task_menu(task)
    chosen = menu.choose(words)
    if chosen is None:
        print(menu.help())
        return 0
    name, rest = chosen
    if name == "predict":
        from .predict import run

        return run(task, rest)
    if name in ("fit", "validate", "test"):
        from .commands.train import run_lightning

        return run_lightning(task, name, rest)
    if name == "check":
        from .commands.check import run_check

        return run_check(task, rest)
    if name == "export":
        from .commands.export import run_export

        return run_export(task, rest)
    if name == "redundancy":
        from .commands.redundancy import run_redundancy

        return run_redundancy(task, rest)
    if name == "learn-cache":
        from .commands.learn_cache import run_learn_cache

        return run_learn_cache(task, rest)
    if name == "demo":
        from .commands.demo import run_demo

        return run_demo(task, rest)
    command = next(command for command in task.commands if command.name == name)
    parser = Parser(f"polydit {task.name} {command.name}", command.help)
    add_options(parser, command.options)
    return int(resolve(command.run)(parser.parse_args(rest)) or 0)


def _list(words: list[str]) -> int:
    from .commands.listing import run_list

    return run_list(words)


def _doctor(words: list[str]) -> int:
    from .doctor import run

    return run(words)


def _lora(words: list[str]) -> int:
    from .commands.lora import run_lora

    return run_lora(words)


def _corpus(words: list[str]) -> int:
    menu = Menu(
        prog="polydit corpus",
        summary="Openly licensed training material.",
        sections=(("commands", (("build", "gather pictures, cut-outs and meshes from Debian packages"),)),),
    )
    chosen = menu.choose(words)
    if chosen is None:
        print(menu.help())
        return 0
    from .data import corpus

    parser = Parser("polydit corpus build", "Gather openly licensed training material, with a manifest.")
    corpus.add_arguments(parser)
    return int(corpus.run(parser.parse_args(chosen[1])) or 0)


def _shards(words: list[str]) -> int:
    from .commands.shards import run_shards

    return run_shards(words)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "doctor": _doctor,
    "corpus": _corpus,
    "lora": _lora,
    "shards": _shards,
}


if __name__ == "__main__":
    sys.exit(main())
