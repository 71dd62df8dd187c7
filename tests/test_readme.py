"""The READMEs say what the committed files say, in two languages, and name only what exists."""

import ast
import csv
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from dvc.cli import parse_args
from ruamel.yaml import YAML

from stages.rlhf.config.base import MODELS
from stages.rlhf.config.whole import Params
from stages.rlhf.plan.experiments import WORKSPACE
from tests import readme as written
from tests.benchmarks import experiments, rivals
from tests.conftest import staged
from tests.readme import READMES, ROOT, rendered

PAGES = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT, check=True, capture_output=True, text=True,
).stdout.split()  # fmt: skip
TEXTS = {page: (ROOT / page).read_text("utf-8") for page in PAGES if (ROOT / page).is_file()}
ENGLISH, KOREAN = TEXTS["README.md"], TEXTS["README.ko.md"]
LANGUAGES = pytest.mark.parametrize("page", ["README.md", "README.ko.md"])
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
OURS = r"(?:stages|tests|metrics|plots|findings|\.ci|\.dvc)/[\w./-]+|[\w.]+\.(?:py|yaml|toml|lock)"


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What git would commit: a run on another processor, or a busier one, has other figures."""
    monkeypatch.setattr(written, "read", staged)


@pytest.mark.parametrize("page", READMES)
def test_blocks_say_what_the_committed_files_say(page: str) -> None:
    assert rendered(TEXTS[page], READMES[page]) == TEXTS[page], "run `python -m tests.readme`"


def test_the_two_commands_stand_in_readme_and_in_ci() -> None:
    ci = (ROOT / ".ci/run").read_text("utf-8")
    assert 'pip install -e ".[test]" && dvc repro' in ENGLISH
    assert 'pip install -q -e ".[test]" && dvc repro' in ci
    assert "\npytest -n 2\n" in ENGLISH
    assert "\npytest -n 2\n" in ci


def test_the_readme_is_short_and_honest_on_its_first_screen() -> None:
    lines = ENGLISH.splitlines()
    assert 150 <= len(lines) <= 200
    assert written.finding("en") in lines[:40]


@LANGUAGES
def test_every_stage_and_every_source_has_its_row(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXTS[page], flags=re.MULTILINE)
    assert list(dict.fromkeys(rows)) == [*STAGES, "jsonl", "kochatgpt", "aihub"]


def test_every_room_has_its_row() -> None:
    rooms = {path.parent.name for path in (ROOT / "stages" / "rlhf").glob("*/__init__.py")}
    page = TEXTS["stages/rlhf/README.md"]
    assert set(re.findall(r"^\| \[(\w+)/\]", page, flags=re.MULTILINE)) == rooms


def commands_of(text: str) -> list[tuple[str, str]]:
    """Language and lines of each code block, without comments; of a tree, its first column."""
    blocks = []
    for language, body in FENCE.findall(text):
        lines = [re.sub(r"\s+#.*", "", line) for line in body.splitlines()]
        if not language:
            lines = [re.split(r"\s{2,}", line.strip())[0] for line in lines]
        blocks.append((language, "\n".join(lines)))
    return blocks


def tables_of(text: str) -> list[list[tuple[int, list[str]]]]:
    """Of each row of each table, how many cells it has, and the numbers in them."""
    prose = FENCE.sub("", text)
    found = re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE)
    return [
        [(row.count("|"), re.findall(r"\d+(?:\.\d+)?", row)) for row in table.splitlines()]
        for table in found
    ]


def links_of(text: str) -> list[str]:
    """Targets of all links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))


def test_the_korean_readme_is_the_english_ones_equal() -> None:
    assert commands_of(KOREAN) == commands_of(ENGLISH)
    assert tables_of(KOREAN) == tables_of(ENGLISH)
    others = {"README.ko.md": "README.md"}
    assert sorted(links_of(KOREAN)) == sorted(others.get(x, x) for x in links_of(ENGLISH))
    assert KOREAN.count("\n## ") == ENGLISH.count("\n## ")


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def broken_links(page: str, text: str) -> Iterator[str]:
    """Links of a page to files or headings that are not there."""
    for link in links_of(text):
        if re.match(r"\w+:", link):
            continue
        path, _, part = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists():
            yield link
        elif part and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            if part not in map(anchor, headings):
                yield link


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    assert list(broken_links(page, TEXTS[page])) == []


def names_in(file: Path) -> set[str]:
    """Functions and classes of a module, methods as Class.method."""
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{n.name}" for n in inner if isinstance(n, ast.FunctionDef)}
    return found


def lost_names(page: str, text: str) -> Iterator[str]:
    """`file` and `file:name` of a page that are not there; what a run makes is not looked for."""
    room = (ROOT / page).parent
    folders = (ROOT, ROOT / "stages" / "rlhf", room, ROOT / "tests" / room.name)
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        path, _, name = code.partition(":")
        if not re.fullmatch(OURS, path) or path.startswith(("metrics/details/", "metrics/runtime")):
            continue
        if re.search(r"/(test_)?x(/|\.\w+)$", path):  # of any stage x
            continue
        file = next((f / path for f in folders if (f / path).exists()), None)
        if file is None or (name and name not in names_in(file)):
            yield code


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_functions_that_are_named_exist(page: str) -> None:
    assert list(lost_names(page, TEXTS[page])) == []


def commands(text: str) -> list[str]:
    """Every command in the code blocks and in the prose of a page."""
    prose = re.findall(r"`((?:dvc|koqa|python -m) [^`\n<]+)`", FENCE.sub("", text))
    blocks = [body for language, body in FENCE.findall(text) if language == "bash"]
    lines = [re.sub(r"(^|\s)#.*", "", line) for body in blocks for line in body.splitlines()]
    return [part.strip() for line in [*lines, *prose] for part in re.split(r"&&|;", line) if part]


def check_command(command: str) -> None:
    """Raises where a command, an option or a param of ours or of DVC's is not there."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "dvc":
        parsed = parse_args(words[1:])
        for target in getattr(parsed, "targets", None) or []:
            known = target in STAGES or Path(target).parts[0] in ("data", "metrics", "plots")
            assert known, f"{command}: no stage {target}"
        check_params(getattr(parsed, "set_param", None) or [])
    elif words[0] == "koqa":
        check_koqa(words[1:])
    elif words[:2] == ["python", "-m"]:
        spec = find_spec(words[2])
        assert spec is not None, f"{command}: no such module"
        assert spec.origin is not None
        source = Path(spec.origin).read_text("utf-8")
        lost = [w for w in words[3:] if w.startswith("-") and f'"{w}"' not in source]
        assert not lost, f"{command}: {lost}"
        if words[2] == experiments.__name__:
            assert set(words[3:]) <= set(experiments.TABLES)
    else:
        known = ("pip", "pytest", "git", "hf", "bash", "pre-commit", "transformers", "gto")
        assert words[0] in (*known, "mkdir", "cp", "mv"), command


def check_params(changes: Iterable[str]) -> None:
    """Raises where the file has no such param, or may not have one of these values.

    `name=values`, one after another. The name may begin with its file, `stages/models.yaml:`,
    otherwise it is of params.yaml; or with `++`, and its last key need not be there.
    """
    content = {n: YAML(typ="safe").load(ROOT / n) for n in ("params.yaml", "stages/models.yaml")}
    for change in changes:
        address, values = change.split("=", 1)
        file, _, name = address.removeprefix("++").rpartition(":")
        *sections, key = name.split(".")
        section = content[file or "params.yaml"]
        for part in sections:
            assert part in section, f"{address}: no such param"
            section = section[part]
        assert key in section or address.startswith("++"), f"{address}: no such param"
        for value in values.split(","):
            section[key] = YAML(typ="safe").load(value)
            Params.model_validate(content["params.yaml"] | content[MODELS])


def check_koqa(words: list[str]) -> None:
    """Raises where `koqa` has no such command or option."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, name = project["scripts"]["koqa"].split(":")
    command = getattr(import_module(module), name)
    context = click.Context(command)
    if isinstance(command, click.Group) and not words[0].startswith("-"):
        command = command.get_command(context, words[0])
        words = words[1:]
    assert command is not None, f"koqa {words}: no such command"
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize("page", TEXTS)
def test_commands_name_what_exists(page: str) -> None:
    for command in commands(TEXTS[page]):
        check_command(command)
    for change in re.findall(r"`-S ([\w.:]+=[^`\s]+)`", TEXTS[page]):
        check_params([change])


@pytest.mark.parametrize(
    "command",
    [
        "dvc exp run -S ppo.no_such_knob=1",
        "dvc exp run -S model=llama9",
        "dvc exp run -S models.tiny.ppo.updates=9",
        "dvc exp run -S ++data.columns.question=q",  # not of the sample
        "dvc exp run -S data.source=jsonl -S ++data.columns.no=q",
        "dvc exp run -S data.source=jsonl -S data.columns.question=q",
        "dvc exp run -S stages/models.yaml:models.tiny.ppo.updates=0",
        "dvc repro no_such_stage",
        "dvc metrics diff --no-such-option",
        "python -m tests.no_such_module",
        "python -m tests.benchmarks.experiments no_such_table",
        "python -m tests.benchmarks.ppo_vs_trl --no-such-option",
        "koqa no-such-command",
        "no-such-program",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises(BaseException):  # noqa: B017, PT011 - each parser has its own
        check_command(command)


def test_a_dead_link_and_a_lost_name_are_found() -> None:
    links = "[a](README.md) [b](no.md) [c](README.md#nowhere) [d](#here)\n# Here\n"
    assert list(broken_links("README.md", links))[:2] == ["no.md", "README.md#nowhere"]
    names = "`stages/rlhf/chat.py:Codec.response_ids` `stages/rlhf/chat.py:Codec.no` `stages/no.py`"
    assert list(lost_names("README.md", names)) == [
        "stages/rlhf/chat.py:Codec.no",
        "stages/no.py",
    ]


@pytest.mark.parametrize("table", ["updates", "validation"])
def test_the_glossary_explains_every_column_of_ppo(table: str) -> None:
    with (ROOT / "plots" / "ppo" / f"{table}.csv").open(encoding="utf-8") as file:
        columns = next(csv.reader(file))
    known = set(re.findall(r"`(\w+)`", TEXTS["metrics/README.md"]))
    assert set(columns) - known == {"update"}


def test_the_finding_is_not_said_where_it_does_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gains = {"unseen_ending": (5.0, 1.0, 9.0), "never_asked": (4.0, 0.9, 8.0)}
    monkeypatch.setattr(written, "gain", lambda kind, key: gains[kind])
    assert "+5 [1, 9] points" in written.finding("en")
    assert "+4 [1, 8] on never-asked" in written.finding("en")
    for kind in gains:
        with monkeypatch.context() as patch:
            patch.setitem(gains, kind, (5.0, -0.1, 9.0))
            with pytest.raises(ValueError, match="rewrite the README's finding"):
                written.finding("en")


def test_a_block_that_lacks_or_is_foreign_is_found() -> None:
    with pytest.raises(ValueError, match=r"\['seeds'\] were expected"):
        rendered("nothing", {"seeds": written.seeds_table})
    with pytest.raises(ValueError, match=r"blocks \['seeds'\]"):
        rendered("<!-- seeds -->\n<!-- /seeds -->\n", {})


def test_the_graph_leaves_out_what_follows(made: Path) -> None:
    (made / "dvc.yaml").write_text(
        "stages:\n"
        "  a: {outs: [x]}\n"
        "  b: {deps: [x], outs: [y], metrics: [m.json: {cache: false}]}\n"
        "  c: {deps: [x, y/z, m.json]}\n",
        "utf-8",
    )
    assert written.graph() == "```mermaid\nflowchart LR\n  a --> b\n  b --> c\n```"


FIGURES = {  # of every run made up below, by key; 0.5 where none is named
    "questions": 100,
    "ppo.kl": 0.25,
    "ppo.best_update": 30.0,
    "ppo.skipped": "False",
    "gate.passed": "True",
    **{f"gates.{gate}": "True" for gate in ("ppo_beats_sft", "no_repetition", "ends", "rm_ok")},
    "gates.length_in_band": "True",
    "sft.unseen_wording.exact": 0.8,
    "ppo.unseen_wording.exact": 0.9,
    "sft.unseen_wording.chrf": 91.26,
}


def made_up(folder: Path, name: str, **changed: Mapping[str, Any]) -> None:
    """A table of experiments whose rows hold FIGURES, with changes by row."""
    columns = experiments.TABLES[name].read({"row": {"rev": WORKSPACE}}, {})["row"]
    cells = {
        row: {key: {**FIGURES, **changed.get(row, {})}.get(key, 0.5) for key in columns}
        for row in experiments.TABLES[name].rows
    }
    write(folder, name, cells)


def write(folder: Path, name: str, cells: dict[str, rivals.Cells]) -> None:
    file = folder / "metrics" / "tables" / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    experiments.write(file, experiments.TABLES[name], "abc", cells)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the repository's root."""
    monkeypatch.setattr(written, "ROOT", tmp_path)
    monkeypatch.setattr(written, "read", lambda path: (tmp_path / path).read_text("utf-8"))
    return tmp_path


def test_seeds_are_shown_and_pooled(made: Path) -> None:
    shut = {"gates.ends": "False", "ppo.unseen_wording.exact": 0.7, "ppo.never_asked.contains": 0.6}
    decided = {"ppo_vs_sft.all.ties": 90, "ppo_vs_sft.all.win_rate_decided": 1.0}
    alike = {"ppo_vs_sft.all.ties": 70, "ppo_vs_sft.all.win_rate_decided": 0.6}
    same = {"ppo_vs_sft.all.ties": 100, "ppo_vs_sft.all.win_rate_decided": None}
    rows = {f"seed {seed}": alike for seed in (0, 1, 2)}
    made_up(made, "seeds", **rows | {"seed 3": same, "seed 4": shut | decided})
    keys = [f"{kind}.{key}" for kind in rivals.KINDS for key in ("exact", "wrong_fact_rate")]
    keys += [f"{kind}.exact_ppo_gain{end}" for kind in rivals.KINDS for end in rivals.ENDS]
    pooled = {row: dict.fromkeys(keys, 0.1 * i) for i, row in enumerate(rivals.POOLED)}
    pooled["sft"]["never_asked.exact_ppo_gain"] = 0.05
    pooled["sft"]["never_asked.exact_ppo_gain_ci_low"] = -0.01
    write(made, "seeds_pooled", pooled)
    lines = written.seeds_table().splitlines()
    assert lines[3] == "| seed 0: sft | 0.500 | 91.3 | 0.800 | 0.500 | 0.500 | 0.500 | – | – | – |"
    assert lines[4].endswith("| 0.900 | 0.500 | 0.500 | 0.500 | 0.600 | 0.250 | 30 |")
    assert len(lines) == 2 + 5 * 3 + 2
    line = lines[-1]
    assert "never-asked facts +0.050 [-0.010, +0.000] over SFT" in line
    assert "unseen endings +0.000 [+0.000, +0.000] over SFT, +0.100 [+0.100, " in line
    assert "Wrong facts, from SFT to PPO: 0.000 to 0.200 (unseen wordings), " in line
    # 3 x 30 decided at .6, none, and 10 at 1
    assert "prefers PPO on 0.640 of 100 decided questions; chrF does on 0.500" in line
    assert "All gates pass with 4 of 5 seeds" in line


def test_rivals_stand_beside_the_same_seeds(made: Path) -> None:
    far = {"ppo.unseen_wording.exact": 0.0}
    made_up(made, "seeds", **{"seed 3": far, "seed 4": far})
    tables = made / "metrics" / "tables"
    (tables / "seeds.csv").rename(tables / "seeds_earlier.csv")
    keys = [f"{place}.{key}" for place in (rivals.ALL, *rivals.KINDS) for key in rivals.ANSWERS]
    keys += [
        f"{kind}.{key}_ppo_gain{end}"
        for kind in rivals.KINDS
        for key in rivals.GAINS
        for end in rivals.ENDS
    ]
    cells = {row: dict.fromkeys(keys, 0.1) for row in rivals.rows()}
    cells |= {rival: dict.fromkeys(keys, 0.2 + i / 10) for i, rival in enumerate(rivals.RIVALS)}
    write(made, "rivals", cells)
    lines = written.rivals_table().splitlines()
    assert [line.split(" | ")[0] for line in lines if "0." in line] == [
        *("| sft", "| best_of_n", "| clean demonstrations", "| demonstrations alone", "| ppo"),
        *("| clean demonstrations", "| demonstrations alone"),
    ]
    assert lines[4].startswith("| clean demonstrations | 0.2 | 0.200 | 0.200 | 0.2 |")
    assert lines[5].startswith("| demonstrations alone | 0.3 | 0.300 |")
    assert lines[6].startswith("| ppo | 0.5 | 0.900 |")  # seeds 3 and 4 have no rivals
    assert lines[-3].startswith(
        "| demonstrations alone | +0.3 [+0.3, +0.3] | +0.300 [+0.300, +0.300] |"
    )
    assert lines[-1] == "Means of 3 seeds. Made at commit abc."


def test_control_says_what_came_of_it(made: Path) -> None:
    closed = {"gate.passed": "False", "gates.rm_ok": "False", "gates.ppo_beats_sft": "False"}
    skipped = {"ppo.skipped": "True", "ppo.skipped_reason": "no gain", "ppo.best_update": 0}
    made_up(made, "control", confounded=closed | skipped | {"ppo.kl": None})
    lines = written.control_table().splitlines()
    assert lines[3].startswith("| default: ppo | 0.500 [0.500, 0.500] | 30 | 0.5 | 0.900 |")
    assert lines[5].startswith("| confounded: ppo | 0.500 [0.500, 0.500] | 0 |")
    assert lines[-3:] == [
        "Default: the gate opens; update 30 is kept; gates that failed: none.",
        "Confounded: the gate stays shut; SFT's weights are the result (no gain);"
        " gates that failed: ppo_beats_sft, rm_ok.",
        "Made at commit abc.",
    ]
