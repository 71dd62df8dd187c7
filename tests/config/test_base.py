"""params.yaml and stages/models.yaml are read as one, and an error names the right file."""

from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.config.base import MODELS
from stages.rlhf.config.whole import load_params
from tests.conftest import naming, write_params


def test_the_base_model_comes_from_models_yaml(tmp_path: Path) -> None:
    file = write_params(tmp_path, **{"model": "micro", "models.micro.lora.r": 5})
    assert load_params(file).base_model.lora.r == 5


def test_an_error_names_the_file_of_its_key(tmp_path: Path) -> None:
    wrong = {"models.micro.lora.r": 0, "ppo.gamma": 2, "models.tiny.dtype": "int8"}
    file = write_params(tmp_path, model="micro", **wrong)
    with pytest.raises(ValueError, match=naming("models.micro.lora.r", "ppo.gamma")) as caught:
        load_params(file)
    one, two = str(caught.value).split(f"{tmp_path / MODELS}: ")
    assert one.startswith(f"{file}: ppo.gamma = 2")
    assert two.startswith("models.")
    assert "models.tiny.dtype = 'int8'" in two


@pytest.mark.parametrize(
    ("wrong", "facts"),
    [
        ({"preprocess.judge_share": 0}, ["preprocess.judge_share", 0, "greater than 0"]),
        (
            {"ppo.processes": 9, "models.micro.ppo.batch_size": 16, "ppo.epochs": 1},
            ["ppo.processes", 9, "models.micro.ppo.batch_size", 16, 2],
        ),
        ({"sample.prompts": 2}, ["sample.prompts", 2, 3]),
        ({"models.micro.architecture.hidden_size": 30}, ["hidden_size", 30, 2, "even"]),
    ],
)
def test_what_would_end_a_later_stage_is_refused(
    tmp_path: Path, wrong: dict[str, Any], facts: list[object]
) -> None:
    with pytest.raises(ValueError, match=naming(*facts)):
        load_params(write_params(tmp_path, model="micro", **wrong))
    assert load_params(write_params(tmp_path, model="micro", **{"ppo.processes": 8}))


@pytest.mark.parametrize("place", ["params.yaml", MODELS])
def test_each_section_has_one_place(tmp_path: Path, place: str) -> None:
    file = write_params(tmp_path)
    with (tmp_path / place).open("a", encoding="utf-8") as out:
        out.write("models: {}\n" if place == "params.yaml" else "seed: 1\n")
    with pytest.raises(ValueError, match=naming(MODELS, "models")):
        load_params(file)


def test_both_files_are_needed(tmp_path: Path) -> None:
    file = write_params(tmp_path)
    (tmp_path / MODELS).unlink()
    with pytest.raises(ValueError, match=naming(MODELS, "no such file")):
        load_params(file)
