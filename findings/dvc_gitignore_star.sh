#!/usr/bin/env bash
# DVC 3.67.1 reads `/data/*` in .gitignore as the folder data/ itself, git does not.
#
# Expected: what `git check-ignore` says. `/data/*` followed by `!/data/raw/` leaves data/raw/ visible
#   to git, and so the .dvc file that `dvc add` writes there.
# Instead: DVC ignores the whole of data/, and no negation below it brings anything back. The .dvc file
#   is written and git sees it, but no DVC command does: `dvc push` leaves the data out, and `dvc gc -w`
#   would take it for unused. With `/data/?*`, which git reads alike, both agree.
# Seen:
#   /data/*  : git sees data/raw/rows.txt.dvc; dvc ls: nothing
#   /data/?* : git sees data/raw/rows.txt.dvc; dvc ls: data/raw/rows.txt
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q dvc==3.67.1
cd "$work"
git init -q repository
cd repository
dvc init -q
mkdir -p data/raw
echo "one row" > data/raw/rows.txt

seen() { # pattern -> what DVC lists below a .gitignore that begins with it
  printf '%s\n!/data/raw/\n/data/raw/?*\n!/data/raw/*.dvc\n' "$1" > .gitignore
  rm -f data/raw/rows.txt.dvc
  dvc add -q data/raw/rows.txt
  git status --short --untracked-files=all | grep -q data/raw/rows.txt.dvc || { echo "git sees none"; exit 1; }
  dvc ls . --recursive --dvc-only 2>/dev/null | grep rows.txt || true
}

star=$(seen '/data/*')
some=$(seen '/data/?*')
echo "/data/*  : git sees data/raw/rows.txt.dvc; dvc ls: ${star:-nothing}"
echo "/data/?* : git sees data/raw/rows.txt.dvc; dvc ls: ${some:-nothing}"
[ -z "$star" ] && [ "$some" = "data/raw/rows.txt" ]
