#!/usr/bin/env bash
# Three of the four NanumGothic files in koreanize-matplotlib 0.1.1 are refused as web fonts.
#
# Expected: a font that matplotlib draws with also works in a page that serves it by @font-face.
# Instead: the files still hold tables of the font editor (TSI0 to TSI5, sources of VTT), and TSI3 is
#   empty, which the OpenType Sanitizer that Chromium and Firefox pass every web font through does not
#   allow: Korean text stays boxes, and the console says "OTS parsing error: TSI3: zero-length table".
#   matplotlib's FreeType ignores the tables. Without them the same file is accepted.
# Seen (opentype-sanitizer 9.2.0, fonttools 4.68.0):
#   NanumGothic.ttf: ERROR: TSI3: zero-length table
#   NanumGothicBold.ttf: ERROR: TSI3: zero-length table
#   NanumGothicExtraBold.ttf: ERROR: TSI3: zero-length table
#   NanumGothicLight.ttf: accepted
#   NanumGothic.ttf without TSI*: accepted
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q --no-deps koreanize-matplotlib==0.1.1 opentype-sanitizer==9.2.0 fonttools==4.68.0
cd "$work"
python - > seen.txt <<'PYTHON'
from importlib.util import find_spec
from pathlib import Path

import ots
from fontTools.ttLib import TTFont

folder = Path(find_spec("koreanize_matplotlib").submodule_search_locations[0], "fonts")


def verdict(path):
    done = ots.sanitize(str(path), "sanitized.ttf", capture_output=True)
    return "accepted" if done.returncode == 0 else done.stderr.decode().splitlines()[0]


for path in sorted(folder.glob("*.ttf")):
    print(f"{path.name}: {verdict(path)}")
font = TTFont(folder / "NanumGothic.ttf")
for table in [name for name in font.keys() if name.startswith("TSI")]:
    del font[table]
font.save("plain.ttf")
print(f"NanumGothic.ttf without TSI*: {verdict('plain.ttf')}")
PYTHON
cat seen.txt
diff seen.txt - <<'EXPECTED'
NanumGothic.ttf: ERROR: TSI3: zero-length table
NanumGothicBold.ttf: ERROR: TSI3: zero-length table
NanumGothicExtraBold.ttf: ERROR: TSI3: zero-length table
NanumGothicLight.ttf: accepted
NanumGothic.ttf without TSI*: accepted
EXPECTED
