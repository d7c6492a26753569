"""The command line: arguments → plan → run. Nothing else happens here."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated

import typer
from rich.console import Console

from xlstm_tune.errors import SpecError, UserError, check_is_text, check_working_folder, one_line
from xlstm_tune.layout import SEARCHES, STORAGE, TRACKING_URI
from xlstm_tune.output import outliving_terminal
from xlstm_tune.search.libraries import set_environment
from xlstm_tune.search.persistence.folder import SPEC, find_folder
from xlstm_tune.search.remote.watch import check_not_a_copy
from xlstm_tune.search_file import QUICKSTART, load_spec, shipped_spaces
from xlstm_tune.spec import NAME, SearchSpec

EXAMPLES = """[bold]Examples[/]

python -m xlstm_tune.search  (the quickstart)

python -m xlstm_tune.search mine.yaml --dry-run

python -m xlstm_tune.search mine.yaml --trials 10 --set training.epochs=5

python -m xlstm_tune.search --resume mine --trials 20

python -m xlstm_tune.search mine.yaml --cluster cluster.yaml
"""

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command(
    epilog=EXAMPLES,
    help="Search LSTM and xLSTM architectures on a table of sequences, and say which one wins and by how much.",
)
def search(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]", help="A search file (YAML) or the name of a shipped one. None: the quickstart."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override any key of the search file. May be given often."),
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", min=1, help="Configurations to train.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the search; its results lie in STORAGE/NAME.")
    ] = None,
    storage: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            envvar=STORAGE,
            help="Folder that holds searches, or a URI: s3://, gs://, abfs://.",
        ),
    ] = SEARCHES,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            envvar=TRACKING_URI,
            help="MLflow server or database. None: MLFLOW_TRACKING_URI, else sqlite in the storage folder.",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Go on with the search of this name. More --trials or another search.time_budget may be given.",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster; `auto` finds one. None: this machine.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The cluster that `ray up FILE` started: the search runs on its head, and goes on without this "
            "terminal. The same command, or --resume NAME with it, shows it again.",
        ),
    ] = None,
    stop: Annotated[
        str | None, typer.Option(metavar="NAME", help="End the search of this name on the --cluster, in order.")
    ] = None,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Train the winner again on training and validation part, and keep that model."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the sizes, train nothing.")
    ] = False,
) -> None:
    """See `help` above."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width; 80 would fold the leaderboard
    try:
        check_working_folder()
        check_is_text(os.getcwd(), "the current folder")
        check_is_text(storage, "--storage")
        check_options(cluster, stop, resume, name, address, dry_run, storage)
        if file is None and resume is None and stop is None:
            file = QUICKSTART
            console.print(
                f"No search file given: running the shipped [bold]{QUICKSTART}[/]. Others: "
                + ", ".join(other for other in shipped_spaces() if other != QUICKSTART),
                highlight=False,
            )
        if cluster is not None and not dry_run:
            from xlstm_tune.search.remote.go import Asked, search_on_cluster

            if (known := stop or resume or name) is None:
                known = load_spec(str(file), overrides or ()).name
            asked = Asked(
                cluster,
                known,
                resume=resume is not None,
                stop=stop is not None,
                file=file,
                overrides=overrides or (),
                trials=trials,
                storage=storage,
                tracking_uri=tracking_uri,
                refit=refit,
            )
            raise typer.Exit(search_on_cluster(asked, console))
        if resume is not None:
            name = resume if file else None  # the kept file has its own
            folder = find_folder(storage, resume)
            check_not_a_copy(folder)
            file = file or str(folder / SPEC)
        spec = load_spec(str(file), overrides or (), name=name, search__trials=trials)
        if resume is not None and spec.name != resume:
            raise SpecError(f"{file} is of a search named '{spec.name}'; rename its folder '{resume}' to that")
        _go(spec, storage, tracking_uri, address, cluster, dry_run, resume is not None, refit, console)
    except UserError as error:
        Console(stderr=True).print(f"[red]error:[/] {one_line(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def check_options(
    cluster: str | None,
    stop: str | None,
    resume: str | None,
    name: str | None,
    address: str | None,
    dry_run: bool = False,
    storage: str = SEARCHES,
) -> None:
    """Raise SpecError for options that do not go together."""
    if resume is not None and name is not None:
        raise SpecError("--resume names the search that goes on; give no --name with it")
    if stop is not None and cluster is None:
        raise SpecError("--stop ends a search on a cluster; give --cluster FILE with it (here, Ctrl-C stops a search)")
    if stop is not None and resume is not None:
        raise SpecError("--stop and --resume contradict each other; give one of them")
    if stop is not None and dry_run:
        raise SpecError("--stop ends a search, and --dry-run trains nothing; give one of them")
    if storage == "":
        raise SpecError("--storage is empty; give a folder or a URI, or leave it out")
    if address == "":
        raise SpecError("--address is empty; give auto or host:port, or leave it out")
    if cluster is not None and address is not None:
        raise SpecError("--cluster runs the search on the cluster's head, --address from here; give one of them")
    for known in (stop, resume if cluster is not None else None):
        if known is not None and not re.fullmatch(NAME, known):
            raise SpecError(f"--stop and --resume take the name of a search, which is no path, got '{known}'")


def _go(
    spec: SearchSpec,
    storage: str,
    tracking_uri: str | None,
    address: str | None,
    cluster: str | None,
    dry_run: bool,
    resume: bool,
    refit: bool,
    console: Console,
) -> None:
    # Imported here: the space and the search file are checked before torch and Ray are loaded.
    set_environment()
    from xlstm_tune.search.sampling.space import Space

    space = Space.from_spec(spec)
    from xlstm_tune.models.baselines import LONG
    from xlstm_tune.search.plan import make_plan

    if spec.data.task == "forecast" and (lookback := spec.max_lookback() or 0) >= LONG:
        words = f"note: fitting the linear baselines on a lookback of {lookback:,} steps can take a while"
        console.print(words, highlight=False)
    with console.status("reading the data"):
        plan = make_plan(spec, space, storage, tracking_uri, address, resume, refit, elsewhere=cluster, dry=dry_run)
    if dry_run:
        from xlstm_tune.search.dry_run import print_plan
        from xlstm_tune.search.persistence.folder import taken

        print_plan(plan, console)
        if not resume and (why := taken(storage, spec.name)):
            console.print(f"note: {why}", highlight=False, markup=False)
        return
    from xlstm_tune.search.run import run

    raise typer.Exit(run(plan, console))


def main() -> None:
    """Entry point of `python -m xlstm_tune.search` and of the `xlstm-tune` command."""
    with outliving_terminal():
        app(prog_name="python -m xlstm_tune.search" if sys.argv[0].endswith("__main__.py") else None)


if __name__ == "__main__":
    main()
