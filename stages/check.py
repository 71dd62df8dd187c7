"""Stage `check`: all parameters are valid; a fingerprint of each stage's code and of the model.

python -m stages.check --out data/check

A misspelt parameter of any stage fails here, in a second. data/check/<stage>.json, {file: sha256},
is what a stage depends on instead of a list of files: it reruns exactly if its own code changed.
data/check/model.json is the same for the files of a base model in `path`, and empty for others.
"""

import json
import shutil
from pathlib import Path

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf.config.whole import load_params
from stages.rlhf.hub import local_files
from stages.rlhf.runs.closure import code_hashes, stage_names


@click.command(help=__doc__)
@path_options("out")
def main(out: Path) -> None:
    """Validate all parameters; write a fingerprint per stage."""
    with one_sentence_errors():
        path = load_params().base_model.path
        fingerprints = {stage: code_hashes(stage) for stage in stage_names() if stage != "check"}
        fingerprints["model"] = local_files(path) if path else {}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, hashes in fingerprints.items():
        text = json.dumps(hashes, indent=2) + "\n"
        (out / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
