"""The page in a real browser, which no test replaces: sorted, searched, clicked, silent."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import binarize

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs Chromium (on Debian: apt-get install chromium)"
)

# Runs behind the page's own script and leaves what it saw in the document.
PROBE = """
<script>
const seen = { errors: [] };
window.addEventListener("error", (event) => seen.errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (e) => seen.errors.push(e.blockedURI));
const table = document.getElementById("layer-table");
const rows = () => [...table.tBodies[0].rows];
const column = (i) => rows().map((row) => Number(row.cells[i].dataset.value ?? NaN));
const button = (name) => [...table.tHead.querySelectorAll("button")]
  .find((b) => b.textContent === name);
button("Bytes").click();
seen.falling = column(7);
button("Bytes").click();
seen.rising = column(7);
seen.sort = [...table.querySelectorAll("[aria-sort]")].map((h) => h.getAttribute("aria-sort"));
button("Layer").click();
seen.names = rows().map((row) => row.cells[0].textContent);
const search = document.querySelector('input[type="search"]');
search.value = "conv2d KEEP";
search.dispatchEvent(new Event("input"));
seen.found = rows().filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
seen.count = document.querySelector("output").textContent;
const drawing = document.querySelector("svg.flow");
const before = drawing.getBoundingClientRect().width;
document.querySelector('[data-zoom="1.25"]').click();
seen.zoom = drawing.getBoundingClientRect().width / before;
const node = document.querySelector("svg.flow a.bit");
seen.target = node.getAttribute("href");
window.addEventListener("hashchange", () => setTimeout(() => {
  const row = document.querySelector("tr:target");
  seen.row = row && "#" + row.id;
  seen.visible = Boolean(row) && !row.hidden && row.getBoundingClientRect().height > 0;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
}, 50));
node.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
</script></body>
"""


def test_page_sorts_searches_and_follows_clicks(tmp_path: Path) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 24, 3), nn.ReLU()),
        *(nn.Conv2d(24, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )
    report = binarize.report(binarize.convert(net, example_inputs=torch.zeros(1, 3, 16, 16)))
    path = report.to_html(tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    run = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000"),
            *(f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', run.stdout, re.S)
    assert found is not None, run.stderr
    seen = json.loads(html.unescape(found[1]))
    assert seen["errors"] == []
    assert "CONSOLE" not in run.stderr
    assert seen["requests"] == []
    sizes = sorted(row.bytes for row in report.layers)
    assert seen["rising"] == sizes
    assert seen["falling"] == sizes[::-1]
    assert seen["sort"] == ["ascending"]
    assert sorted(seen["names"]) == sorted(row.name for row in report.layers)
    kept = [r.name for r in report.layers if r.decision == "keep" and r.part == "layer"]
    assert sorted(seen["found"]) == sorted(kept)
    assert seen["count"] == f"{len(kept)} of {len(report.layers)} rows"
    assert seen["zoom"] == pytest.approx(1.25, abs=0.01)
    # The search hid the binary layer's row; the click shows it again.
    assert seen["row"] == seen["target"]
    assert seen["visible"]


@pytest.mark.parametrize(("scheme", "least", "most"), [(0, 0, 0.03), (1, 0.7, 1)])
def test_figures_are_dark_on_a_dark_page(
    scheme: int, least: float, most: float, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 24, 3), nn.Conv2d(24, 2, 1))
    student = binarize.convert(net, example_inputs=torch.zeros(1, 3, 16, 16))
    found = binarize.inspect(student, [torch.randn(1, 3, 16, 16)])
    page, picture = found.to_html(tmp_path / "page.html"), tmp_path / "page.png"
    subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,1600"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", page.as_uri()),
        ],
        capture_output=True,
        check=True,
        timeout=120,
    )
    with Image.open(picture) as image:
        light = float((np.asarray(image.convert("L")) > 200).mean())
    assert least <= light <= most
