#!/usr/bin/env bash
# pytest-xdist 3.8.0's `--dist loadgroup` does nothing under pytest 9.2.0: tests marked with one
# xdist_group run in several processes.
#
# Expected: as documented, all tests of a group go to the same worker, so that a session's fixture, an
#   expensive one, is made once.
# Instead: xdist tells the group by a suffix that it writes to `item._nodeid`; pytest 9.2 derives node
#   ids from elsewhere, so the suffix is never seen and every test is a group of its own. Nothing is
#   said. `--dist loadfile` keeps working, for it goes by the file in the id.
# Seen:
#   loadgroup: 6 tests of one group on 2 workers
#   loadfile: 6 tests of one file on 1 worker
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q pytest==9.2.0 pytest-xdist==3.8.0
cd "$work"
cat > test_group.py <<'PYTHON'
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_of_the_group(number: int) -> None:
    time.sleep(0.2)  # so that no worker is done before the other begins
PYTHON
workers() { pytest -n 2 --dist "$1" -v test_group.py | grep -o '\[gw[01]\]' | sort -u | wc -l; }
echo "loadgroup: 6 tests of one group on $(workers loadgroup) workers"
echo "loadfile: 6 tests of one file on $(workers loadfile) worker"
test "$(workers loadgroup)" = 2 && test "$(workers loadfile)" = 1
