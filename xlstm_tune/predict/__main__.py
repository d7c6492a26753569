"""The command line: a search's name and a table → forecasts in a file."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xlstm_tune.errors import StorageError, UserError, check_working_folder, one_line, reaching
from xlstm_tune.layout import ABOUT, SEARCHES, SPEC, STORAGE
from xlstm_tune.output import outliving_terminal
from xlstm_tune.spec import NAME
from xlstm_tune.strict import did_you_mean

ENDINGS = (".parquet", ".csv")
SHOWN = 8
"""Rows on the terminal; the file holds all."""

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command(help="Forecast from a table with the winner of a finished search, in the table's own columns and units.")
def predict(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The search, or the path of a champion's folder.")],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", help="CSV, Parquet or Arrow with the columns of the search's data; or sample:NAME."
        ),
    ],
    storage: Annotated[
        str, typer.Option(metavar="FOLDER", envvar=STORAGE, help="Folder or URI that holds searches.")
    ] = SEARCHES,
    output: Annotated[
        str, typer.Option(metavar="FILE", help="Where the forecasts go: .parquet or .csv.")
    ] = "forecasts.parquet",
    level: Annotated[float, typer.Option(help="Of the intervals: how often they shall hold what comes.")] = 0.9,
    every: Annotated[
        bool, typer.Option("--all", help="Forecast from every row with enough rows before it, not from the end alone.")
    ] = False,
) -> None:
    """See `help` above."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    try:
        check_working_folder()
        place = Path(output)
        if place.suffix not in ENDINGS:
            raise StorageError(f"--output must end in {' or '.join(ENDINGS)}, got '{output}'")
        home, alone = place.absolute().parent, Path(os.path.expanduser(name))
        with reaching(f"--output names a file in {home}, which", StorageError):
            if not home.is_dir():
                raise StorageError(f"--output names a file in {home}, which is no folder; make it first")
        with reaching(alone, StorageError):
            itself = (alone / ABOUT).is_file()
        folder = alone if itself else find_search(storage, name)
        with console.status("reading"):
            _go(folder, table, place, level, every, console)
    except UserError as error:
        Console(stderr=True).print(f"[red]error:[/] {one_line(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def find_search(storage: str, name: str) -> Path:
    """The folder of a search. Raises StorageError when there is none, with the nearest name."""
    if "://" in storage and re.fullmatch(NAME, name):
        # Imported here: a folder needs no file systems of others.
        from xlstm_tune.storage.copy import local_storage

        storage = local_storage(storage, name)
    root = Path(os.path.expanduser(storage)).absolute()
    if not re.fullmatch(NAME, name):
        raise StorageError(
            f"NAME is that of a search, which is no path, or a champion's folder, which holds {ABOUT}, got '{name}'; "
            "give the folder that a search lies in with --storage"
        )
    with reaching(root / name, StorageError):
        if not (root / name / SPEC).is_file():
            known = [path.parent.name for path in root.glob(f"*/{SPEC}")] if root.is_dir() else []
            hint = did_you_mean(name, known, dotted=False) if known else "no search has been started there"
            raise StorageError(f"{root} holds no search '{name}'; {hint}")
    return root / name


def _go(folder: Path, table: str, place: Path, level: float, every: bool, console: Console) -> None:
    # Imported here: what is wrong with the command itself is said before torch is loaded.
    from xlstm_tune.data.read import local_files, read_source
    from xlstm_tune.predict.champion import load_champion
    from xlstm_tune.predict.forecasts import forecasts
    from xlstm_tune.predict.make import champion_of
    from xlstm_tune.predict.write import print_rows, write_table

    champion = load_champion(champion_of(folder))
    if any(os.path.realpath(file) == os.path.realpath(place) for file in local_files(table, "TABLE") or ()):
        raise StorageError(f"--output names {place}, which TABLE is read from; give the forecasts a file of their own")
    made = forecasts(champion, read_source([table], {}, champion.data.labels, "TABLE"), level, every)
    for note in made.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    write_table(made.table, place)
    print_rows(made.table, SHOWN, console)
    about = "trained again on training and validation part" if champion.about["refit"] else "as it was searched"
    member = champion.about["member"]
    seed = "" if member is None else f", seed {champion.config.training.seed}"  # of a population, the one that is kept
    upper = made.table.column(champion.outputs[-1 - len(champion.shape.quantiles)])  # quantiles come last
    intervals = f"; intervals at {100 * level:g} %" if upper.null_count < len(upper) else ""  # else a note says so
    console.print(
        f"{made.table.num_rows:,} rows in {place}, by trial {champion.trial}{seed} ({champion.title}; {about})"
        f"{intervals}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def main() -> None:
    """Entry point of `python -m xlstm_tune.predict`."""
    with outliving_terminal():
        app(prog_name="python -m xlstm_tune.predict" if sys.argv[0].endswith("__main__.py") else None)


if __name__ == "__main__":
    main()
