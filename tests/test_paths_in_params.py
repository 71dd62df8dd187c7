"""Paths and columns as people have them, in `-S`: parsed by DVC's code, read by preprocess."""

import re
import shlex
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from dvc.exceptions import InvalidArgumentError
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, to_hydra_overrides
from hydra.errors import OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML

from stages.rlhf.config.base import load
from stages.rlhf.config.preprocess import PreprocessParams
from tests.conftest import ROOT, write_params

AIHUB = "/data/121.한국어 성능이 개선된 초거대AI 언어모델 개발 및 데이터"
ODD = (
    *(
        AIHUB,
        unicodedata.normalize("NFD", AIHUB),
        "/d/한글",
        "/d/漢字",
        "data/raw/my data",
        " /d/ ",
    ),
    *("/d/a,b", "/d/a=b", "/d/a(1).zip", "/d/a(b", "/d/a)b", "/d/a#b", "/d/~a", "~/a"),
    *("/d/a[b]", "/d/a[b", "/d/a]b", "/d/a{b}", "/d/a{b", "/d/a:b", "/d/100%", "/d/a'b", "/d/a`b"),
    *("/d/a$b", "/d/a&b;c|d", "/d/a*b?", "/d/!a", "/d/a@b+c", "/d/a\\b", "C:\\a b\\c"),
    *("null", "true", "1", "/d/1e5", "/d/[주]회사, (2024)=최종#1"),
)
BARE = ("data/raw/mydata", "/d/a-b_c.d/e", "/d/a b", "/d/a:b")  # which need no quotes


def changed(params: Path, *words: str) -> PreprocessParams:
    """What stage preprocess reads once `dvc exp run -S word -S word` has written it."""
    ((file, overrides),) = to_path_overrides(words).items()
    assert file == "params.yaml"
    if any(change.is_sweep_override() for change in to_hydra_overrides(overrides)):
        raise InvalidArgumentError("Sweep overrides can't be used without `--queue`")
    apply_overrides(params, overrides)
    return load(PreprocessParams, params)


def parsed(folder: Path, word: str) -> Path:
    """`data.path` after `-S word`."""
    params = write_params(folder)
    path = changed(params, word).data.path
    assert isinstance(YAML(typ="safe").load(params)["data"]["path"], str)
    return path


def in_shell(word: str) -> str:
    """What a shell hands on of the word: the README's outer quotes are single ones."""
    (only,) = shlex.split("'" + word.replace("'", "'\\''") + "'")
    return only


@pytest.mark.parametrize("path", ODD)
def test_double_quotes_in_the_value_hold_any_path(path: str, tmp_path: Path) -> None:
    assert parsed(tmp_path, in_shell(f'data.path="{path}"')) == Path(path)


def test_a_double_quote_in_a_name_has_a_backslash(tmp_path: Path) -> None:
    assert parsed(tmp_path, r'data.path="/d/a\"b"') == Path('/d/a"b')


@pytest.mark.parametrize("path", BARE)
def test_a_plain_path_needs_no_quotes(path: str, tmp_path: Path) -> None:
    assert parsed(tmp_path, f"data.path={path}") == Path(path)


@pytest.mark.parametrize("path", [p for p in ODD if re.search(r"[,=()#~\[\]{}'`&!]|[가-힣]", p)])
def test_without_them_it_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidArgumentError, OverrideParseException)):
        parsed(tmp_path, f"data.path={path}")


@pytest.mark.parametrize("path", ["/d/${x}", "/d/a${b"])
def test_no_quotes_hold_an_interpolation(path: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidArgumentError, OverrideParseException, OmegaConfBaseException)):
        parsed(tmp_path, f'data.path="{path}"')


@pytest.mark.parametrize("name", ["질문", "질 문(1)", "question_text", "a.b", "답변=1,2"])
def test_a_column_is_named_and_named_anew(name: str, tmp_path: Path) -> None:
    params = write_params(tmp_path, **{"data.source": "jsonl"})
    for column in ("first", name):
        found = changed(params, f'++data.columns.question="{column}"', '++data.columns.id="번호"')
    assert found.data.columns == {"question": name, "id": "번호"}


@pytest.mark.parametrize("word", ["data.columns.question=q", "++data.columns.question=질문"])
def test_another_way_to_name_a_column_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidArgumentError, OverrideParseException)):
        changed(write_params(tmp_path, **{"data.source": "jsonl"}), word)


def changes_of(page: str) -> list[list[str]]:
    """The words after `-S` of each command of a page that sets some of section data."""
    found = []
    for line in (ROOT / page).read_text("utf-8").splitlines():
        for command in re.findall(r"`(dvc [^`]*)`", line) or [line] * line.startswith("dvc "):
            words = shlex.split(command, comments=True)
            found.append([w for s, w in pairwise(words) if s == "-S" and "data." in w])
    return list(filter(None, found))


@pytest.mark.parametrize("page", ["README.md", "README.ko.md"])
def test_the_commands_of_the_readme_are_parsed(page: str, tmp_path: Path) -> None:
    paths, columns = [], {}
    for words in changes_of(page):
        data = changed(write_params(tmp_path), *words).data
        (given,) = (word for word in words if word.startswith("data.path="))
        assert data.path == Path(given.removeprefix("data.path=").strip('"'))
        paths.append(given)
        columns |= data.columns
    assert any(re.search('="[^"]*[가-힣][^"]* [^"]*"$', path) for path in paths), paths
    assert columns == {"question": "질문"}
