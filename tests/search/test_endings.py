"""What a search says when it stops."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from xlstm_tune.layout import REFIT_WISH
from xlstm_tune.search.endings import resume_words
from xlstm_tune.search.finals.refit import refit_tried, wish_for_refit
from xlstm_tune.search.stopping import INTERRUPTED


def said(folder: Path, refit: bool, address: str | None = None) -> str:
    named = SimpleNamespace(name="wave")
    plan = SimpleNamespace(folder=folder, spec=named, storage="", refit=refit, address=address)
    return resume_words(cast(Any, plan), INTERRUPTED)


def test_the_way_on_asks_for_a_refit_only_while_the_folder_does_not(tmp_path: Path) -> None:
    assert said(tmp_path, True).endswith(" --refit") and not said(tmp_path, False).endswith(" --refit")
    assert wish_for_refit(tmp_path, True) and not said(tmp_path, True).endswith(" --refit")
    refit_tried(tmp_path)
    assert (tmp_path / REFIT_WISH).is_file() and not said(tmp_path, True).endswith(" --refit")


def test_the_way_on_leads_to_the_same_cluster(tmp_path: Path) -> None:
    assert "--address" not in said(tmp_path, False)
    assert said(tmp_path, False, "auto").endswith(f"--storage {tmp_path.parent} --address auto")
