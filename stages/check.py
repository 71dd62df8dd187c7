"""Stage `check`: params.yaml is valid, and here is a fingerprint of each stage's code.

python -m stages.check --out data/check

A misspelt parameter of any stage fails here, in a second. data/check/<stage>.json, {file: sha256},
is what a stage depends on instead of a list of files: it reruns exactly if its own code changed.
"""

import json
import shutil
from pathlib import Path

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf.config.whole import load_params
from stages.rlhf.runs.closure import code_hashes, stage_names


@click.command(help=__doc__)
@path_options("out")
def main(out: Path) -> None:
    """Validate params.yaml; write a fingerprint per stage."""
    with one_sentence_errors():
        load_params()
        fingerprints = {stage: code_hashes(stage) for stage in stage_names() if stage != "check"}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for stage, hashes in fingerprints.items():
        text = json.dumps(hashes, indent=2) + "\n"
        (out / f"{stage}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
