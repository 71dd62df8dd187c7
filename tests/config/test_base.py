"""params.yaml and stages/models.yaml are read as one, and an error names the right file."""

from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.config.base import MODELS, load
from stages.rlhf.config.sft import SftParams
from stages.rlhf.config.whole import Params, load_params
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


def test_a_retired_key_is_one_of_its_own_section(tmp_path: Path) -> None:
    file = write_params(tmp_path, **{"embedder.epochs": 2, "eda.epochs": 2})
    with pytest.raises(ValueError, match="epochs") as caught:
        load_params(file)
    lines = str(caught.value).removeprefix(f"{file}: ").split("; ")
    assert any(line.startswith("embedder.epochs = 2: retired: ") for line in lines)
    assert "eda.epochs = 2: no such key" in lines


@pytest.mark.parametrize(
    ("wrong", "facts"),
    [
        ({"preprocess.judge_share": 0}, ["preprocess.judge_share", 0, "greater than 0"]),
        ({"sample.prompts": 2}, ["sample.prompts", 2, 3]),
        (
            {"models.micro.dtype": "bfloat16"},
            ["models.micro: sft.method full", "bfloat16", "mixed", "float32", "lora"],
        ),
        ({"models.micro.dtype": "nf4"}, ["models.micro: dtype nf4", "architecture", "hub", "path"]),
        (
            {
                "models.micro.dtype": "nf4",
                "models.micro.architecture": None,
                "models.micro.base": None,
                "models.micro.hub": "org/twin",
            },
            ["models.micro: sft.method full", "nf4", "frozen", "mixed", "float32", "lora"],
        ),
        ({"models.micro.architecture.hidden_size": 30}, ["hidden_size", 30, 2, "even"]),
    ],
)
def test_what_would_end_a_later_stage_is_refused(
    tmp_path: Path, wrong: dict[str, Any], facts: list[object]
) -> None:
    with pytest.raises(ValueError, match=naming(*facts)):
        load_params(write_params(tmp_path, model="micro", **wrong))
    assert load_params(write_params(tmp_path, model="micro"))


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


@pytest.mark.parametrize("schema", [Params, SftParams])
@pytest.mark.parametrize("dtype", ["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_in_bfloat16_are_trained_by_adapters_alone(
    tmp_path: Path, schema: type[Params | SftParams], dtype: str, method: str
) -> None:
    chosen = {"model": "micro", "models.micro.dtype": dtype, "models.micro.sft.method": method}
    file = write_params(tmp_path, **chosen)
    if (method, dtype) == ("full", "bfloat16"):
        with pytest.raises(ValueError, match=naming("models.micro", "round to nothing")):
            load(schema, file)
    else:
        assert load(schema, file).base_model.sft.method == method
