"""The registry: artifacts of dvc.yaml by a version tag, from the repository that made them."""

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.exceptions import ArtifactNotFoundError, DvcException
from dvc.repo import Repo
from dvc.repo.artifacts import Artifacts
from ruamel.yaml import YAML

from tests.conftest import ROOT

PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")
ARTIFACTS = PIPELINE["artifacts"]
FILES = {"run.json": "{}", "best/adapter_model.safetensors": "weights"}


def git(folder: Path, *words: str) -> None:
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)


def dvc(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our artifacts section over an output each, one commit, no remote; its tags: none."""
    folder = tmp_path_factory.mktemp("registry") / "koqa"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    Repo.init(str(folder)).close()
    paths = [artifact["path"] for artifact in ARTIFACTS.values()]
    stages = {Path(path).name: {"cmd": "true", "outs": [path]} for path in paths}
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as out:
        YAML().dump({"stages": stages, "artifacts": ARTIFACTS}, out)
    for path in paths:
        for name, text in FILES.items():
            (folder / path / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / path / name).write_text(f"{path} {text}", encoding="utf-8")
    with Repo(str(folder)) as repo:
        repo.commit(force=True)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "results")
    return folder


def test_artifacts_are_the_models_of_the_pipeline() -> None:
    assert set(ARTIFACTS) == {"sft", "rm", "ppo"}
    for name, artifact in ARTIFACTS.items():
        assert artifact["path"] in PIPELINE["stages"][name]["outs"]
        assert artifact["type"] == "model"
        assert artifact["desc"]
        assert artifact["labels"]


def assert_got(folder: Path, name: str) -> None:
    for file, text in FILES.items():
        assert (folder / file).read_text("utf-8") == f"data/{name} {text}"


def test_a_version_is_got_by_its_annotated_tag(repository: Path, tmp_path: Path) -> None:
    git(repository, "tag", "sft@v1.0.0")  # without -a it is no version
    with Repo(str(repository)) as repo, pytest.raises(ArtifactNotFoundError, match="sft"):
        repo.artifacts.get_rev("sft")
    git(repository, "tag", "-a", "ppo@v1.0.0", "-m", "the default run")
    dvc(tmp_path, "artifacts", "get", str(repository), "ppo", "--rev", "v1.0.0")
    assert_got(tmp_path / "ppo", "ppo")


def test_the_latest_version_is_the_default(repository: Path) -> None:
    git(repository, "tag", "-a", "rm@v0.10.0", "-m", "second")
    git(repository, "commit", "-q", "--allow-empty", "-m", "later")
    git(repository, "tag", "-a", "rm@v0.9.0", "-m", "first")
    with Repo(str(repository)) as repo:
        assert repo.artifacts.get_rev("rm") == repo.artifacts.get_rev("rm", version="v0.10.0")
        assert repo.artifacts.get_rev("rm") != repo.artifacts.get_rev("rm", version="v0.9.0")


def test_without_a_tag_any_revision_will_do(repository: Path, tmp_path: Path) -> None:
    dvc(tmp_path, "get", str(repository), "data/rm", "--rev", "main")
    assert_got(tmp_path / "rm", "rm")


def test_a_clone_needs_what_was_pushed(repository: Path, tmp_path: Path) -> None:
    git(repository, "tag", "-a", "sft@v2.0.0", "-m", "pushed")
    git(tmp_path, "clone", "-q", str(repository), "clone")
    clone, out = tmp_path / "clone", str(tmp_path / "sft")
    for folder in (repository, clone):
        with Repo(str(folder)) as repo, repo.config.edit("local") as config:
            config["core"]["remote"] = "store"
            config["remote"]["store"] = {"url": str(tmp_path / "store")}
    with pytest.raises(DvcException, match="Failed to download artifact 'sft'"):
        Artifacts.get(str(clone), "sft", out=out)
    with Repo(str(repository)) as repo:
        repo.push()
    Artifacts.get(str(clone), "sft", out=out)
    assert_got(tmp_path / "sft", "sft")
