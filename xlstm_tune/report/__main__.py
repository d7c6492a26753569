"""`python -m xlstm_tune.report NAME` writes a page about a search, from its tables; also while it runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from xlstm_tune.errors import StorageError, UserError, check_working_folder
from xlstm_tune.layout import SEARCHES, STORAGE
from xlstm_tune.output import outliving_terminal


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m xlstm_tune.report", description=__doc__)
    parser.add_argument(
        "searches",
        metavar="NAME",
        nargs="+",
        help="a search's name, or its folder; several are compared on one page",
    )
    parser.add_argument(
        "--storage",
        metavar="FOLDER",
        default=os.environ.get(STORAGE) or SEARCHES,
        help=f"folder or URI that holds searches ({STORAGE}, else searches)",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="where the page goes (report.html in the search's folder)"
    )
    options = parser.parse_args(arguments)
    try:
        check_working_folder()
        path = _write(options.searches, options.storage, options.output)
    except UserError as error:
        print(" ".join(f"error: {error}".split()), file=sys.stderr)
        return 2
    print(path)
    return 0


def _write(names: list[str], storage: str, output: Path | None) -> Path:
    # matplotlib, which Optuna loads, tells where it keeps its cache when the home folder takes none.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Imported here: help and wrong arguments do not wait for Optuna.
    from xlstm_tune.report.page import write_page
    from xlstm_tune.report.record import find_search
    from xlstm_tune.storage.copy import local_storage

    storage = local_storage(storage, *names)
    folders = [find_search(name, storage) for name in names]
    if output is not None and os.path.isdir(output):  # Path.is_dir raises for a folder closed to us
        raise StorageError(f"--output must be a file, got the folder {output}; name a file in it")
    if len(folders) == 1:
        return write_page(folders[0], output)
    from xlstm_tune.report.comparison import write_comparison

    return write_comparison(folders, output or Path(storage) / "comparison.html")


if __name__ == "__main__":
    with outliving_terminal():
        sys.exit(main())
