"""Sharing by `dvc push` and `dvc pull` as the README says: a folder, and SSH on the loopback."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

SSHD = Path("/usr/sbin/sshd")
SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""
DATA = "data/raw/mydata"
UP_TO_DATE = "Data and pipelines are up to date."


@dataclass(frozen=True)
class Remote:
    """A place to push to: what `dvc remote` is told, and the folder in which the objects lie."""

    url: str
    folder: Path
    local: dict[str, str] = field(default_factory=dict)  # of one user, kept out of git

    def object(self, md5: str) -> Path:
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]


@pytest.fixture(scope="module", autouse=True)
def _dvc_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting, index or analytics of the user's DVC."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
            patch.setenv(f"DVC_{name}_DIR", str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield


@contextmanager
def ssh_server(folder: Path) -> Iterator[int]:
    """A server on the loopback that knows one key, made for it; its port."""
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True, timeout=60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(SERVER.format(port=port, folder=folder), encoding="utf-8")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # root's sshd does not start without it
    log = folder / "log"
    with log.open("w") as said:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=said)
    try:
        end = time.monotonic() + 20
        while "Server listening" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, "sshd does not listen after 20 s"
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(params=["folder", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    folder = tmp_path / "storage"
    if request.param == "folder":
        yield Remote(str(folder), folder)
        return
    if not SSHD.is_file():
        pytest.skip(f"{SSHD} is absent (Debian: openssh-server)")
    keys = tmp_path / "keys"
    keys.mkdir()
    with ssh_server(keys) as port:
        local = {"user": getpass.getuser(), "keyfile": str(keys / "user")}
        yield Remote(f"ssh://127.0.0.1:{port}{folder}", folder, local)


def attempt(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, `dvc` and `git` among them, in a folder."""
    command = [sys.executable, "-m", *words] if words[0] == "dvc" else [*words]
    python = Path(sys.executable).parent  # stages are run by the `python` of PATH
    environment = os.environ | {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
    environment["KOQA_WORK"] = str(where / ".work")
    return subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=280
    )


def run(where: Path, *words: str) -> str:
    """What a command that must succeed has said."""
    done = attempt(where, *words)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def named(repository: Path) -> None:
    """Commits need an author."""
    run(repository, "git", "config", "user.name", "a")
    run(repository, "git", "config", "user.email", "a@example.org")


def commit(repository: Path) -> None:
    run(repository, "git", "add", "--all")
    run(repository, "git", "commit", "-q", "-m", "All there is")


def publish(repository: Path, remote: Remote) -> None:
    """Add the remote as the README says, commit it, push."""
    run(repository, "dvc", "remote", "add", "--default", "storage", remote.url)
    run(repository, "dvc", "remote", "modify", "storage", "verify", "true")
    commit(repository)
    log_in(repository, remote)
    run(repository, "dvc", "push")


def log_in(repository: Path, remote: Remote) -> None:
    for key, value in remote.local.items():
        run(repository, "dvc", "remote", "modify", "--local", "storage", key, value)


def clone(repository: Path, target: Path, remote: Remote) -> Path:
    """A colleague's clone, whose cache is empty."""
    run(repository, "git", "clone", "-q", str(repository), str(target))
    named(target)
    log_in(target, remote)
    assert not (target / ".dvc" / "cache").exists()
    return target


def add_data(repository: Path) -> str:
    """The user's folder of two files; the hash of the first."""
    (repository / DATA).mkdir(parents=True)
    (repository / DATA / "sft.jsonl").write_text("가" * 500, encoding="utf-8")
    (repository / DATA / "ppo.jsonl").write_text("나" * 500, encoding="utf-8")
    run(repository, "dvc", "add", DATA)
    return hash_of(repository, f"{DATA}.dvc", "sft.jsonl")


def hash_of(repository: Path, dvcfile: str, file: str) -> str:
    """The md5 of a file in a folder that DVC tracks."""
    whole = YAML(typ="safe").load(repository / dvcfile)["outs"][0]["md5"]
    listed = repository / ".dvc" / "cache" / "files" / "md5" / whole[:2] / whole[2:]
    return next(e["md5"] for e in json.loads(listed.read_text()) if e["relpath"] == file)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A repository with this one's settings and ignore rules, and no stage."""
    repository = tmp_path / "user"
    repository.mkdir()
    run(repository, "git", "init", "-q", "-b", "main")
    named(repository)
    for name in (".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/config"):
        (repository / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, repository / name)
    return repository


def test_added_data_come_along_and_outlive_gc(user: Path, remote: Remote, tmp_path: Path) -> None:
    add_data(user)
    (user / "data" / "raw" / "not_added.txt").write_text("large")
    publish(user, remote)
    assert run(user, "git", "ls-files", "data").split() == [f"{DATA}.dvc"]
    assert "No unused 'repo' cache" in run(user, "dvc", "gc", "--workspace", "--dry")
    colleague = clone(user, tmp_path / "colleague", remote)
    assert f"{DATA}/" in run(colleague, "dvc", "pull")
    for name in ("sft.jsonl", "ppo.jsonl"):
        assert (colleague / DATA / name).read_bytes() == (user / DATA / name).read_bytes()
    assert UP_TO_DATE in run(colleague, "dvc", "status")

    (user / DATA / "sft.jsonl").write_text("다", encoding="utf-8")
    run(user, "dvc", "add", DATA)
    commit(user)
    gc = ("dvc", "gc", "--workspace", "--dry")
    assert "Removed 2 objects from repo cache" in run(user, *gc)
    assert "No unused 'repo' cache" in run(user, *gc, "--all-commits")


@pytest.mark.slow
def test_a_damaged_object_is_noticed_and_can_be_mended(
    user: Path, remote: Remote, tmp_path: Path
) -> None:
    md5 = add_data(user)
    publish(user, remote)
    damaged = remote.object(md5)
    whole = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged.chmod(0o444)

    careless = clone(user, tmp_path / "careless", remote)
    run(careless, "dvc", "remote", "modify", "--local", "storage", "verify", "false")
    run(careless, "dvc", "pull")
    assert (careless / DATA / "sft.jsonl").read_bytes() != whole
    assert UP_TO_DATE in run(careless, "dvc", "status"), "DVC sees it by itself: say so in README"

    colleague = clone(user, tmp_path / "colleague", remote)
    failed = attempt(colleague, "dvc", "pull")
    assert failed.returncode == 1
    assert f"Checkout failed for following targets:\n{DATA}" in failed.stderr
    assert not (colleague / DATA / "sft.jsonl").exists()
    assert f"{DATA}/sft.jsonl" in run(colleague, "dvc", "status", "--cloud")

    damaged.unlink()
    for listed in remote.folder.rglob("*.dir"):
        listed.unlink()
    assert "2 files pushed" in run(user, "dvc", "push")
    run(colleague, "dvc", "pull")
    assert (colleague / DATA / "sft.jsonl").read_bytes() == whole


@pytest.fixture(scope="module")
def trained(uncut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the whole pipeline has run, beside data that its user added."""
    repository = Path(shutil.copytree(uncut, tmp_path_factory.mktemp("trained") / "trained"))
    shutil.rmtree(repository / ".work")
    shutil.copytree(repository / "data" / "sample", repository / DATA)
    run(repository, "dvc", "add", DATA)
    commit(repository)
    return repository


def ran(said: str) -> list[str]:
    """The stages that `dvc repro` has run."""
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]


@pytest.mark.slow
@pytest.mark.timeout(900)  # with the whole pipeline before the first of them
def test_a_colleague_goes_on_with_pulled_models(
    trained: Path, remote: Remote, tmp_path: Path
) -> None:
    author = Path(shutil.copytree(trained, tmp_path / "author"))
    publish(author, remote)
    assert UP_TO_DATE in run(author, "dvc", "status")
    colleague = clone(author, tmp_path / "colleague", remote)
    run(colleague, "dvc", "pull")
    assert UP_TO_DATE in run(colleague, "dvc", "status")
    assert "are in sync" in run(colleague, "dvc", "status", "--cloud")
    assert ran(run(colleague, "dvc", "repro")) == []
    assert not run(colleague, "git", "status", "--short")

    lock = (colleague / "dvc.lock").read_bytes()
    shutil.rmtree(colleague / "data" / "evaluate")
    again = run(colleague, "dvc", "repro", "--single-item", "--force", "evaluate")
    assert ran(again) == ["evaluate"]
    assert (colleague / "dvc.lock").read_bytes() == lock
    changed = run(colleague, "git", "status", "--short").split()
    times = "metrics/runtime/evaluate.json", "metrics/runtime/runs/evaluate.json"
    assert changed == ["M", times[0], "M", times[1]]
    for name in ("report.html", "samples.jsonl"):
        made, first = (where / "data" / "evaluate" / name for where in (colleague, author))
        assert made.read_bytes() == first.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)  # with the whole pipeline before the first of them
def test_an_experiment_goes_by_both_remotes_and_outlives_gc(trained: Path, tmp_path: Path) -> None:
    remote = Remote(str(tmp_path / "storage"), tmp_path / "storage")
    author = Path(shutil.copytree(trained, tmp_path / "author"))
    publish(author, remote)
    hub = tmp_path / "hub.git"
    run(tmp_path, "git", "clone", "-q", "--bare", str(author), str(hub))
    run(author, "git", "remote", "add", "origin", str(hub))
    run(author, "dvc", "exp", "run", "--temp", "-n", "short", "-S", "evaluate.max_questions=12")
    assert "Pushed experiment short" in run(author, "dvc", "exp", "push", "origin", "short")

    colleague = clone(hub, tmp_path / "colleague", remote)
    run(colleague, "dvc", "pull")
    cloud = ("dvc", "gc", "--workspace", "--all-experiments", "--cloud", "--dry")
    assert "Removed 4 objects from remote" in run(colleague, *cloud), "gc --cloud knows all clones"
    assert "short" in run(colleague, "dvc", "exp", "list", "origin")
    run(colleague, "dvc", "exp", "pull", "origin", "short")
    gc = ("dvc", "gc", "--workspace", "--dry")
    assert "Removed 4 objects from repo cache" in run(colleague, *gc)
    assert "No unused 'repo' cache" in run(colleague, *gc, "--all-experiments")
    assert "No unused" in run(colleague, *cloud).split("remote")[0]

    run(colleague, "dvc", "exp", "apply", "short")
    assert UP_TO_DATE in run(colleague, "dvc", "status")
    samples = (colleague / "data" / "evaluate" / "samples.jsonl").read_text(encoding="utf-8")
    assert len(samples.splitlines()) == 12
