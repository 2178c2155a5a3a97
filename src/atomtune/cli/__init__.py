"""The command line: one module for each command, imported when the command is run, so that `atomtune --help` is quick.

Every option is a flag and a key of the YAML that `--config` names (flags win), through cyclopts's own configuration
sources. An error that the user can fix is printed as one sentence on stderr, with exit code 2.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict
from wrapt import register_post_import_hook

from atomtune.errors import UserError
from atomtune.files import expanded

app = App(name="atomtune", help="Fine-tune frozen transformers with sparse dictionaries of feature atoms.")
app.command("atomtune.cli.customize:customize", help="Learn a subject from a few images.")
app.command("atomtune.cli.generate:generate", help="Draw images, with or without an adapter.")
app.command("atomtune.cli.prune:prune", help="Keep the few atoms that matter.")
app.command("atomtune.cli.inspect:inspect", help="Show what an adapter learned, on one page.")
app.command(
    "atomtune.cli.edit:edit", help="Edit an image: learn it, then draw a new prompt with more and with fewer atoms."
)
app.command("atomtune.cli.merge:merge", help="Merge several adapters into one, or measure how far two overlap.")
app.command("atomtune.cli.compare:compare", help="Score adapters side by side: same prompts, same noise.")
app.command("atomtune.cli.sweep:sweep", help="Train many adapters: folders, methods, options and seeds in one table.")
app.command("atomtune.cli.distill:distill", help="Convert a LoRA into atoms.")
app.command("atomtune.cli.plan:plan", help="Say whether training and drawing fit a card, before anything is loaded.")
app.command("atomtune.cli.recipes:recipes", help="List the settings that ship with atomtune, by base.")
app.command("atomtune.cli.demo:demo", help="Learn a teapot from five bundled images and draw it on other backgrounds.")
app.command("atomtune.cli.studio:studio", help="Learn, look at atoms and turn them, in a browser.")
app.command("atomtune.cli.examples:examples", help="Lay out images and prompts to try everything with.")
app.meta.suppress_keyboard_interrupt = False  # `main` prints the message of an interrupted command


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        str | None, Parameter(help="YAML file with options, or a recipe that `atomtune recipes` lists; flags win.")
    ] = None,
):
    sources = []
    if config is not None:
        from atomtune.training.recipes import load_recipe

        options = load_recipe(config)
        if tokens and tokens[0] == "plan":
            from atomtune.cli.plan import planned

            options = planned(options)
        sources.append(Dict(options, source=config, use_commands_as_keys=False))
    if tokens and tokens[0] == "customize":
        from atomtune.cli.customize import shipped_recipe

        sources.append(shipped_recipe)
    app.config = tuple(sources)
    try:
        command, args, kwargs = parsed(tokens)
    finally:
        app.config = ()  # they are those of this command line alone
    return command(*args, **kwargs)


def parsed(tokens: Sequence[str]) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """The command and its arguments."""
    command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return command, [*map(_expanded, bound.args)], {name: _expanded(value) for name, value in bound.kwargs.items()}


def _expanded(value: Any) -> Any:
    """A path, or a list of them, with the home folder for `~`, which no shell expands after `--out=` or in YAML."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return expanded(value) if isinstance(value, Path) else value


def _without_loading_bars(diffusers) -> None:
    """Opening a pipeline takes a second or two; the bars worth showing are training's."""
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def _signals(stopped: threading.Event) -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt` as Ctrl-C does, so that nothing half-written is left; both set `stopped`.
    Other handlers that are already set stay."""
    plain = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    here = threading.current_thread() is threading.main_thread()  # other threads handle no signals
    ours = [number for number, handler in plain.items() if here and signal.getsignal(number) is handler]

    def stop(_number: int, _frame: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, plain[number])


def main(arguments: list[str] | None = None) -> None:
    """Run one command line (`sys.argv` by default) and exit: 0 when done, 2 for what the user can fix, 130 when stopped
    by Ctrl-C or SIGTERM."""
    # Threads that wait for one another look for work some microseconds, then sleep. As long as OpenMP lets them look,
    # they take the cores that others need beside another program; to sleep at once is slow where nothing else runs
    # (docs/results/speed.md). OpenMP reads this when torch is imported; the second is of GNU's, on Linux.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    register_post_import_hook(_without_loading_bars, "diffusers")
    tokens = sys.argv[1:] if arguments is None else arguments
    stopped = threading.Event()
    try:
        if tokens[:1] == ["customize"] and {"--help", "-h"} & {*tokens}:
            from atomtune.cli.customize import ActingDefaults

            app["customize"].help_formatter = ActingDefaults(tokens[1:])
        with _signals(stopped):
            app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt as stop:
        if str(stop):
            print(f"atomtune: {stop}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(1)
    except Exception as error:
        # What is stopped within an import, or in C, may turn the interrupt into an error of its own.
        if stopped.is_set():
            sys.exit(130)
        if not isinstance(error, UserError | CycloptsError):
            raise
        print(f"atomtune: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
