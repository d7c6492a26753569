"""`python -m xlstm_tune.tracking sync NAME` sends what a search left unsent; `follow` is the search's own writer, and
`uri FOLDER` tells where searches in a folder have their runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from xlstm_tune.errors import UserError, check_working_folder
from xlstm_tune.layout import STORAGE
from xlstm_tune.output import outliving_terminal
from xlstm_tune.storage.copy import local_storage
from xlstm_tune.tracking.logs import set_up_logging
from xlstm_tune.tracking.uri import default_uri
from xlstm_tune.tracking.writer import find_search, follow, sync


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all has arrived, 1 something is left, 2 a mistake that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m xlstm_tune.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parser_sync = commands.add_parser("sync", help="send what a search left unsent to MLflow")
    parser_sync.add_argument("search", metavar="NAME", help="the search's name, or its folder")
    parser_sync.add_argument(
        "--storage", metavar="FOLDER", help=f"folder or URI that holds searches ({STORAGE}, else searches)"
    )
    parser_sync.add_argument(
        "--tracking-uri", metavar="URI", help="another MLflow store than the one that the search used"
    )
    parser_follow = commands.add_parser("follow", help="send a spool while its search writes it (started by a search)")
    parser_follow.add_argument("folder", type=Path)
    parser_follow.add_argument("--parent", type=int, help="process id of the search")
    parser_uri = commands.add_parser("uri", help="print the address of a storage folder's MLflow database")
    parser_uri.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    set_up_logging(person=options.command != "follow")
    try:
        check_working_folder()
        if options.command == "uri":
            print(default_uri(options.folder))
            return 0
        if options.command == "follow":
            return follow(options.folder, options.parent)
        # A folder is meant as it stands, unless the storage is given beside it. (Path.is_dir raises for a closed one.)
        usual = None if os.path.isdir(options.search) else os.environ.get(STORAGE)
        storage = options.storage or usual or None
        storage = storage and local_storage(storage, options.search)
        left = sync(find_search(options.search, storage), options.tracking_uri)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(left or "everything has arrived in MLflow")
    return 1 if left and left.events else 0


if __name__ == "__main__":
    with outliving_terminal():
        sys.exit(main())
