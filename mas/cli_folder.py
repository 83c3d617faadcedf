"""Commands on folders that ``mas run`` has written. Heavy imports happen inside them, so that help is quick."""

import sys
from collections.abc import Callable
from contextlib import ContextDecorator
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="A folder that mas run has written.", show_default=False)]


def say_reading(place: Path) -> None:
    """Show on a terminal that something is going on: what follows imports torch, which takes seconds."""
    if sys.stderr.isatty():
        typer.echo(f"reading {place}", err=True)


def register(app: typer.Typer, user_errors: Callable[[], ContextDecorator]) -> None:
    """Add the commands to the command line.

    Args:
        app: the command line.
        user_errors: returns a context manager that shows mistakes in one line.
    """
    for command in (status, merge, clean, verify):
        app.command()(user_errors()(command))


def status(
    folder: Folder,
    every: Annotated[bool, typer.Option("--all", help="Show also each cell that is done or waiting.")] = False,
) -> None:
    """Show how far a run has come: cells done, running, stopped, failed, diverged, waiting."""
    say_reading(folder)
    from rich.console import Console
    from rich.table import Table

    from mas.experiments.maintenance.status import status as status_of

    found = status_of(folder)
    typer.echo(found.summary())
    shown = found.shown(every=every)
    if not shown.rows:
        return
    table = Table()
    for heading in shown.headings:
        table.add_column(heading, justify="right" if heading in ("seconds", "memory") else "left")
    for row in shown.rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 160, markup=False, emoji=False).print(table)


def merge(
    out: Annotated[Path, typer.Argument(help="The folder for all cells.", show_default=False)],
    folders: Annotated[list[Path], typer.Argument(help="Folders of one config.", show_default=False)],
) -> None:
    """Join folders of one config, such as those of shards; then write the report if every cell is there."""
    say_reading(out)
    from mas.experiments.maintenance.merge import merge as merge_folders

    merged = merge_folders(out, folders)
    typer.echo(str(merged))
    if merged.headline:
        typer.echo(f"report: {out / 'report.html'}")


def clean(
    folder: Folder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove checkpoints, stale locks, notes on failed cells and temporary files; results stay."""
    say_reading(folder)
    from mas.experiments.maintenance.clean import clean as clean_folder

    removed = clean_folder(folder, dry_run=dry_run)
    for sort in removed:
        typer.echo(str(sort))
    total = f"{sum(sort.size for sort in removed):,} bytes"
    typer.echo(f"would free {total}: nothing was removed" if dry_run else f"freed {total}")


def verify(
    folder: Folder,
    cell: Annotated[
        str | None, typer.Option(help="The cell to run again; by default a random one.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="By which the random one is drawn.", show_default=False)] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Where data sets are; by default $MAS_DATA.", show_default=False)
    ] = None,
) -> None:
    """Check all records of a run, and run one cell again: are its numbers the same to the bit?"""
    say_reading(folder)
    from mas.experiments.maintenance.verify import verify as verify_folder

    found = verify_folder(folder, cell=cell, seed=seed, data=data)
    for line in found.lines():
        typer.echo(line, err=line.startswith("error: "))
    if not found.is_right:
        raise typer.Exit(1)
