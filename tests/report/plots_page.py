"""Write .dvc/plots/page.html, the page of `dvc plots`, with Vega in it.

python -m tests.report.plots_page

DVC's own page takes Vega from a CDN and is blank without a network. Vega, Vega-Lite and Vega-Embed
come from the package vl-convert-python; Vega-Lite in the version of DVC's templates.
"""

import vl_convert
from ruamel.yaml import YAML

from tests.conftest import ROOT

PLOTS = YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]
CHARTS = [p for p in PLOTS if isinstance(p, dict)]
FIGURES = [p for p in PLOTS if isinstance(p, str)]
PAGE = ROOT / ".dvc" / "plots" / "page.html"
VEGA_LITE = "5.20"
HTML = """<!DOCTYPE html>
<html lang="ko">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="connect-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'">
{refresh_tag}
<title>koqa: dvc plots</title>
<style>
body { font-family: "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", sans-serif; }
table { border-spacing: 15px; }
img { max-width: 100%; }
body > div:has(> div > img) { white-space: normal !important; }
body > div > div:has(> img) { box-sizing: border-box; max-width: calc(100% - 16px); }
body > div > div:has(> img):not(:only-of-type) { max-width: calc(50% - 16px); }
</style>
<script>
(function () { BUNDLE })();
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def page() -> str:
    """The page, with DVC's placeholders in it."""
    return HTML.replace("BUNDLE", vl_convert.javascript_bundle(vl_version=VEGA_LITE).strip())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
