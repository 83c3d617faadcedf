"""The ``mas`` command. Heavy imports happen inside the commands, so that help is quick."""

import atexit
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mas.cli_folder import register, say_reading

if TYPE_CHECKING:
    from rich.console import Console

    from mas.experiments.events import Event, Progress
    from mas.experiments.report.sections import Headline

app = typer.Typer(
    help="Continual learning with memory-aware synapses: run experiments, compare who forgets what.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="A YAML file, such as configs/split_digits.yaml.", show_default=False)]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the config, such as training.epochs=2; may be repeated."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Where data sets are, or are downloaded to; by default $MAS_DATA.", show_default=False),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        import mas

        typer.echo(f"mas {mas.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def run(
    config: ConfigFile,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; by default runs/<name of the config file>.", show_default=False),
    ] = None,
    changes: Changes = None,
    data: Data = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes; by default one per core. Results do not depend on it.", show_default=False
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Train the I-th of N shares of the cells only, as one job of an array."),
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add cells, such as further seeds, to a folder of a config with fewer.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and about how long they take; train and write nothing.")
    ] = False,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Where cells are done: local, or ray. Results do not depend on it.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster: auto, IP:PORT or ray://HOST:PORT; by default Ray is started here.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train every strategy with every seed, then write tables, figures and a report.

    Cells (one strategy, one seed) that are finished are not run again. Several processes may share a folder.
    """
    with _user_errors():
        from mas.experiments.early import check_early
        from mas.experiments.engines.registry import check_engine

        folder = output or Path("runs") / config.stem
        check_early(config, changes or [], folder, shard=shard)
        check_engine(engine, address)
        if dry:
            _print_dry_run(config, folder, changes or [], workers)
            return
        typer.echo(f"reading {config}")  # what follows imports torch, which takes seconds
        from mas import experiments

        own: dict[str, Any] = {"output": folder, "workers": workers, "data": data, "shard": shard, "extend": extend}
        own |= {"engine": engine, "address": address}
        with _showing() as show:
            done = experiments.run(config, changes or [], **own, progress=show)
        for line in done.failed:
            typer.echo(f"error: {line}", err=True)
        if done.shard:
            typer.echo(str(done.shard))
        if done.outcomes.records and not (done.shard and done.shard.left):
            _print(done.headline())
            typer.echo(f"report: {folder / 'report.html'}")
        if done.failed:
            raise typer.Exit(1)


def _print_dry_run(config: Path, folder: Path, changes: list[str], workers: int | None) -> None:
    say_reading(config)
    from mas.experiments.dry_run import dry_run
    from mas.experiments.read_config import load_config

    for line in dry_run(load_config(config, changes, try_data=False), folder, workers).lines():
        typer.echo(line)


@app.command()
def check(config: ConfigFile, changes: Changes = None, data: Data = None) -> None:
    """Validate a config and print its cells, without running them."""
    with _user_errors():
        from mas.experiments.early import check_early

        check_early(config, changes or [])
        say_reading(config)
        from mas.experiments.plan import Plan
        from mas.experiments.read_config import load_config

        plan = Plan(load_config(config, changes or [], data))
        cells = plan.every_cell()
        for cell in cells:
            typer.echo(f"{cell.id}: {cell.settings.describe()}")
        if plan.to_come:
            typer.echo(f"and {plan.to_come} more, whose values are suggested once these are finished")
        typer.echo(f"{config} is valid: {len(cells) + plan.to_come} cells")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that mas run has written.", show_default=False)],
) -> None:
    """Make the tables, figures and the report of a run anew from its cells."""
    with _user_errors():
        say_reading(folder)
        from mas import experiments

        _print(experiments.load(folder).report())
        typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A folder that mas run has written.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
) -> None:
    """Compare the strategies that two runs have in common, paired by seed."""
    with _user_errors():
        say_reading(first)
        from rich.table import Table

        from mas.experiments.compare import compare_folders
        from mas.experiments.report.text import intervals

        comparison = compare_folders(first, second)
        for line in comparison.notes:
            typer.echo(line)
        interval_note = intervals(comparison.table["n"].max(), "[95 % interval over seeds]")
        table = Table(title=f"{second} − {first}, percent, {interval_note}", title_justify="left")
        shown = comparison.shown()
        for heading in shown.headings:
            table.add_column(heading, justify="left" if heading == "strategy" else "right")
        for row in shown.rows:
            table.add_row(*row)
        _console().print(table)


@app.command("list")
def list_names() -> None:
    """List strategies, data sets, streams, models, deficits, probes and loggers, each with a line of explanation."""
    with _user_errors():
        from mas.benchmarks import DATASETS, DEFICITS, STREAMS
        from mas.experiments.loggers import LOGGERS
        from mas.experiments.networks import MODELS
        from mas.experiments.options import describe
        from mas.strategies import PROBES, STRATEGIES

        registries: dict[str, Any] = {
            "strategies": STRATEGIES,
            "data sets": DATASETS,
            "streams": STREAMS,
            "models": MODELS,
            "deficits": DEFICITS,
            "probes": PROBES,
            "loggers": LOGGERS,
        }
        for title, registry in registries.items():
            typer.echo(f"{title}:")
            for name, entry in registry.items():
                typer.echo(f"  {name:<17} {describe(entry)}")


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):  # one that knows no Greek letters, such as ASCII, shows their numbers
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as ended:
        _leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End the process without taking apart what was imported: that takes seconds, and there is nothing left to do."""
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = code or _CLOSED
    os._exit(code)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Show a user's mistake as plain lines, with exit code 2."""
    from mas.experiments.errors import UserError

    try:
        with _notes():
            yield
    except UserError as error:
        for line in error.lines:
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {_HOW_TO_GO_ON}", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(_CLOSED) from None


@contextmanager
def _notes() -> Iterator[None]:
    """Show old spellings in a config, and loggers that fail, as plain lines; other warnings as ever."""
    from mas.experiments.errors import LoggerWarning, RenamedWarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, (LoggerWarning, RenamedWarning)):
            typer.echo(f"note: {message}", err=True)
        else:
            show_as_before(message, category, *rest, **more)

    with warnings.catch_warnings():
        show_as_before = warnings.showwarning
        warnings.filterwarnings("always", category=LoggerWarning)
        warnings.filterwarnings("always", category=RenamedWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _showing() -> Iterator["Progress"]:
    """Yield what shows the events of a run. When the output is closed, as by ``| head``, the run stops as by Ctrl-C."""
    from mas.experiments.stopping import request_stop
    from mas.experiments.terminal import showing

    is_closed = False
    with showing(sys.stdout) as show:

        def show_or_stop(event: "Event") -> None:
            nonlocal is_closed
            try:
                show(event)
            except BrokenPipeError:
                is_closed = True
                _discard_output()
            if is_closed:
                request_stop()

        try:
            yield show_or_stop
        except KeyboardInterrupt:
            if not is_closed:
                raise
            typer.echo("the output was closed: " + _HOW_TO_GO_ON, err=True)
            raise typer.Exit(_CLOSED) from None


_HOW_TO_GO_ON = "finished cells are kept: run the same command again to go on"
_CLOSED = 141  # what a shell says of a program that was ended by a closed pipe


def _discard_output() -> None:
    """Write nothing more to an output that is closed, not even what Python still holds when it ends."""
    with suppress(OSError, ValueError):  # a stream without a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(shown: "Headline") -> None:
    from rich.table import Table

    table = Table(title=shown.title, title_justify="left")
    for number, heading in enumerate(shown.table.headings):
        table.add_column(heading, justify="right" if number else "left")
    console = _console()
    gap = " [" if console.width >= 100 else "\n["  # a narrow terminal breaks between mean and interval
    for row in shown.table.rows:
        table.add_row(*(cell.replace(" [", gap) for cell in row))
    if shown.table.rows:
        console.print(table)
    for note in shown.notes:
        typer.echo(note)


def _console() -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120

    class Lines(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process here

    return Lines(width=width, markup=False, emoji=False)  # names of folders and classes may look like markup


register(app, _user_errors)
