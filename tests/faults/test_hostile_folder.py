"""Names, folders and files that somebody else made are data, lead nowhere else, and hold no password."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.table import load_table
from xlstm_tune.errors import DataError, StorageError
from xlstm_tune.search.__main__ import app
from xlstm_tune.search.persistence.folder import (
    SPEC,
    check_folder,
    check_password,
    check_same_data,
    create_folder,
    find_folder,
)
from xlstm_tune.search_file import load_spec
from xlstm_tune.spec import SearchSpec
from xlstm_tune.tracking import default_uri, ui_command

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "xlstm_tune").rglob("*.py"))
URL = "postgresql://user:secret@host/db"


def make_spec(**search: object) -> SearchSpec:
    data = {"source": "s3://key:secret@bucket/a.csv?region=eu-west-1", "target": "y", "lookback": 8}
    return SearchSpec.parse({"name": "mine", "data": data, "search": search})


def sentence(arguments: list[str]) -> str:
    """The error of a command that must be refused, with exit code 2, one line and no traceback."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    error = result.stderr.strip()
    assert error.startswith("error: ") and "\n" not in error and "Traceback" not in error
    return error


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A storage folder with one search, and another search beside it."""
    for folder in (tmp_path / "searches" / "mine", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / SPEC).write_text("name: mine\n")
    return tmp_path / "searches"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../elsewhere", "mine/../../elsewhere", "mine/.", "./mine", "mine\x00", "~", "-x", "mine\n"]
)
def test_resume_refuses_a_name_that_is_a_path(name: str, storage: Path) -> None:
    with pytest.raises(StorageError, match="takes the name of a search, which is no path"):
        find_folder(str(storage), name)
    assert "which is no path" in sentence([f"--resume={name}", "--storage", str(storage)])


def test_resume_refuses_an_absolute_path(storage: Path) -> None:
    with pytest.raises(StorageError, match="which is no path"):
        find_folder(str(storage), str(storage.parent / "elsewhere"))


def test_resume_refuses_a_link_out_of_the_storage_folder(storage: Path) -> None:
    (storage / "link").symlink_to(storage.parent / "elsewhere")
    with pytest.raises(StorageError, match="is a link that leads out of the storage folder"):
        find_folder(str(storage), "link")
    (storage.parent / "other-way-in").symlink_to(storage)
    assert find_folder(str(storage.parent / "other-way-in"), "mine").name == "mine"


def test_resume_refuses_a_folder_that_holds_a_search_of_another_name(storage: Path) -> None:
    (storage / "copy").mkdir()
    (storage / "copy" / SPEC).write_text(yaml.safe_dump(make_spec().model_dump(by_alias=True, exclude_none=True)))
    error = sentence(["--resume", "copy", "--storage", str(storage)])
    assert "'mine'" in error and "copy" in error


def test_a_new_search_refuses_the_name_of_a_link_that_leads_nowhere(storage: Path) -> None:
    (storage / "link").symlink_to(storage.parent / "not-there")
    with pytest.raises(StorageError, match="already used"):
        check_folder(str(storage), "link")


@pytest.mark.parametrize("storage", ["~nobody-of-that-name/x", "a\x00b", "x" * 300])
def test_storage_folders_that_cannot_be_are_one_sentence(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="holds no search 'mine'"):
        find_folder(storage, "mine")
    if storage.startswith("~"):
        assert check_folder(storage, "mine") == tmp_path / storage / "mine"
        return
    with pytest.raises(StorageError, match="cannot be written"):
        check_folder(storage, "mine")


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "null", "\x00"])
def test_a_damaged_environment_is_one_sentence(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    with pytest.raises(StorageError, match="missing or damaged"):
        check_same_data(tmp_path, "abc")


@pytest.mark.parametrize("ending", [".pkl", ".pickle", ".pt", ".npy", ".joblib"])
def test_data_of_a_kind_that_can_run_code_are_refused(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"table{ending}"
    file.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DataError, match="of a kind that cannot be read"):
        load_table(DataConfig.parse({"source": str(file), "target": "y", "lookback": 8}, "data"))


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system [touch pwned]", "!!python/name:os.system", "!!python/object/new:os.system [x]"],
)
def test_yaml_that_names_code_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: {text}\n")
    assert "no meaning in a search file" in sentence([str(tmp_path / "a.yaml")])
    (tmp_path / "a.yaml").write_text("name: x\n")
    assert "no meaning in a search file" in sentence([str(tmp_path / "a.yaml"), "--set", f"name={text}"])


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call and the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "xlstm_tune")))
def test_nothing_in_the_package_reads_files_that_can_run_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            forbidden = {"pickle", "cPickle", "cloudpickle", "joblib", "dill", "marshal", "shelve"}
            assert name.split(".")[0] not in forbidden, name
            assert name != "pandas" or path.name == "served.py", name  # MLflow hands its frames to the model there
    for name, call in calls(tree):
        assert name not in {"eval", "exec", "compile", "torch.load", "torch.jit.load", "np.load", "numpy.load"}, name
        assert not re.match(r"(pd|pandas)\.(read_|HDFStore|io)", name), name
        assert not any(keyword.arg == "allow_pickle" for keyword in call.keywords), name
        assert not re.search(r"\byaml\.(unsafe|full)_load", name), name
        if name in {"yaml.load", "yaml.load_all"}:
            loaders = [ast.unparse(one.value) for one in call.keywords if one.arg == "Loader"]
            assert loaders == ["_Loader"], name
            assert "class _Loader(yaml.SafeLoader)" in path.read_text()


def test_the_frozen_search_file_holds_no_password(tmp_path: Path) -> None:
    spec = make_spec(storage=URL)
    create_folder(tmp_path / "mine", spec, "abc")
    for file in (tmp_path / "mine").iterdir():
        assert "secret" not in file.read_text() and "user:" not in file.read_text(), file
    frozen = load_spec(str(tmp_path / "mine" / SPEC))
    assert frozen.search.storage == "postgresql://***@host/db"
    assert frozen.data.source == ["s3://bucket/a.csv?region=eu-west-1"]
    assert frozen.model_copy(update={"search": spec.search, "data": spec.data}) == spec
    kept = spec.model_copy(
        update={"data": spec.data.model_copy(update={"source": ["abfs://box:secret@acct.net/x.csv"]})}
    )
    create_folder(tmp_path / "azure", kept, "abc")
    assert load_spec(str(tmp_path / "azure" / SPEC)).data.source == ["abfs://box@acct.net/x.csv"]
    with pytest.raises(StorageError, match=r"--set search\.storage=URL") as caught:
        check_password(frozen)
    assert "\n" not in str(caught.value)
    check_password(load_spec(str(tmp_path / "mine" / SPEC), [f"search.storage={URL}"]))


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("s3://key:sec/ret@bucket/a.csv", "s3://bucket/a.csv"),
        ("s3://key@bucket/a.csv", "s3://bucket/a.csv"),
        ("s3://bucket/me@home.csv", "s3://bucket/me@home.csv"),
        ("/data/me@home.csv", "/data/me@home.csv"),
    ],
)
def test_the_frozen_search_file_holds_no_key_of_a_bucket(source: str, kept: str, tmp_path: Path) -> None:
    spec = SearchSpec.parse({"name": "mine", "data": {"source": source, "target": "y", "lookback": 8}})
    create_folder(tmp_path / "mine", spec, "abc")
    assert load_spec(str(tmp_path / "mine" / SPEC)).data.source == [kept]


@pytest.mark.parametrize("password", ["se'cret", 'se"cret', "se cret", "se/cret", "sec@ret"])
def test_the_frozen_search_file_holds_no_odd_password(password: str, tmp_path: Path) -> None:
    create_folder(tmp_path / "mine", make_spec(storage=f"postgresql://user:{password}@host/db"), "abc")
    assert load_spec(str(tmp_path / "mine" / SPEC)).search.storage == "postgresql://***@host/db"


@pytest.mark.parametrize(
    "url", ["sqlite:////data/me@home/optuna.db", "postgresql://me@host/db", "mysql://h/my db?x=1", None]
)
def test_the_frozen_search_file_keeps_a_storage_without_a_password(url: str | None, tmp_path: Path) -> None:
    create_folder(tmp_path / "mine", make_spec(storage=url), "abc")
    frozen = load_spec(str(tmp_path / "mine" / SPEC))
    assert frozen.search.storage == url
    check_password(frozen)


def test_pages_are_shown_to_this_machine_alone() -> None:
    assert "--host 127.0.0.1" in ui_command(default_uri(Path("/x")), Path("/x"))
    recipe = (ROOT / "Makefile").read_text().partition("\nui:")[2].partition("\n\n")[0]
    assert "--host 127.0.0.1" in recipe
    for path in MODULES:
        for name, call in calls(ast.parse(path.read_text())):
            if name == "ray.init":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                # A cluster that is there already has its own; one started here has none.
                assert given.get("include_dashboard") == "False" or given.get("address") == "address", path
    for path in (ROOT / "cluster.yaml", ROOT / "Makefile", *MODULES):
        assert not re.search(r"0\.0\.0\.0|dashboard.host[= ](?!127\.0\.0\.1)", path.read_text()), path
