"""The README.md of an exported model: origin, figures, limits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from stages.rlhf.bot.models import folder_of
from stages.rlhf.files import RUN, file_hash
from stages.rlhf.hub import POINTER
from stages.rlhf.precision import NF4

TITLES = {
    "base": "the base model",
    "sft": "supervised fine-tuning (SFT)",
    "ppo": "SFT, then PPO against a reward model",
    "rm": "the reward model that PPO was trained against",
}
ANSWERS = {  # metrics/details/evaluate.json -> what it is called
    "cosine": "cosine to the reference (sentence embeddings)",
    "chrf": "chrF",
    "exact": "equal to the reference",
    "eos_rate": "ends by itself",
    "repetition": "stuck in a loop",
    "length": "characters",
}
RANKING = {
    "accuracy": "pairs of answers ranked as people did",
    "length_only_accuracy": "the same by length alone",
    "length_correlation_given_rank": "correlation with length, given people's rank",
}
LIMITS = """\
- It answers one question; the template knows no system prompt and no earlier turns.
- What it says can be wrong, and is not filtered: look at answers before anyone relies on them.
- It has learned the errors and the tone of the answers that it was trained on.
"""


def card(name: str, data: Path, metrics: Path, lock: Path, model: str, dtype: str) -> str:
    """Markdown with the front matter that the hub reads.

    `name` is a key of TITLES, `model` the entry of models.yaml. Figures that the run has not
    measured are left out.
    """
    found = _read(folder_of("base", data) / POINTER)
    hub = found.get("hub")
    front: dict[str, Any] = {"language": ["ko"], "library_name": "transformers"}
    front["pipeline_tag"] = "text-classification" if name == "rm" else "text-generation"
    front["tags"] = ["korean", "question-answering", *(["rlhf"] if name in ("ppo", "rm") else [])]
    if hub:
        front |= {"base_model": hub, "base_model_relation": "finetune", "license": "other"}
        front |= {
            "license_name": "that of the base model",
            "license_link": f"https://huggingface.co/{hub}",
        }
    out = StringIO()
    YAML().dump(front, out)
    parts = [f"---\n{out.getvalue()}---\n", f"# {model}: {TITLES[name]}\n"]
    parts.append("A Korean question-answering model made by the pipeline koqa, with DVC.\n")
    parts.append(f"## Licence\n\n{_licence(hub, found)}\n")
    figures = _figures(name, metrics)
    if figures:
        parts.append(f"## How good it is\n\nOn test questions, with 95 % intervals.\n\n{figures}\n")
    parts.append(f"## Limits\n\n{LIMITS}")
    parts.append(f"## How it was made\n\n{_made(name, data, metrics, lock, found, dtype)}")
    return "\n".join(parts)


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _licence(hub: str | None, pointer: Mapping[str, Any]) -> str:
    if hub:
        return (
            f"The licence of [{hub}](https://huggingface.co/{hub}) applies, and that of your data."
        )
    if pointer:
        return "The licence of the base model, which came from a folder, applies, and your data's."
    return "None is given: the weights were trained here from scratch. Yours to choose."


def _figures(name: str, metrics: Path) -> str:
    """A table; of PPO's with the judge's verdict below."""
    if name == "rm":
        found, titles = _read(metrics / "details" / "rm.json"), RANKING
        block: Mapping[str, Any] = found
    else:
        found, titles = _read(metrics / "details" / "evaluate.json"), ANSWERS
        block = found.get(name, {})
    lines = [
        f"| {title} | {spanned(block, key)} |"
        for key, title in titles.items()
        if block.get(key) is not None
    ]
    if not lines:
        return ""
    text = "\n".join(["| | |", "|---|---:|", *lines])
    pair = found.get("ppo_vs_sft", {}) if name == "ppo" else {}
    if pair.get("win_rate_decided") is not None:
        rate = spanned(pair, "win_rate_decided")
        text += (
            f"\n\nA judge, trained on other questions, prefers it to SFT where they differ: {rate}."
        )
    return text


def spanned(block: Mapping[str, Any], key: str) -> str:
    """A figure with its interval, where it has one."""
    low, high = (block.get(f"{key}_ci_{end}") for end in ("low", "high"))
    span = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{block[key]:.3f}{span}"


def _made(
    name: str, data: Path, metrics: Path, lock: Path, pointer: Mapping[str, Any], dtype: str
) -> str:
    """A list of what determines it: commit, lock, seed, hashes."""
    run = _read(data / name / RUN)
    ran = _read(metrics / "runtime" / "runs" / f"{name}.json")
    packed = run.get("params", {}).get("models.${model}.dtype") == NF4
    known = {
        "git commit": ran.get("commit"),
        "dvc.lock, sha256": file_hash(lock) if lock.is_file() else None,
        "fingerprint of the run": run.get("fingerprint"),
        "base model's revision": pointer.get("revision"),
        "seed": run.get("params", {}).get("seed"),
        **{f"input {key}, sha256": value for key, value in run.get("inputs", {}).items()},
        **{f"package {key}": value for key, value in run.get("packages", {}).items()},
        "dtype of the weights": dtype,
        "weights that adapters were trained on": "in 4 bits (nf4), dequantised" if packed else None,
    }
    return "".join(f"- {key}: `{value}`\n" for key, value in known.items() if value is not None)
