"""The report in a real browser where there is one, and as text everywhere."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from erasure.reports.page import as_text, picture, rendered, table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCORE = {"value": 12.34, "unit": "%", "n": 50, "interval": [1.0, 20.0]}


@pytest.fixture(scope="module")
def report(ddpm_folder, tmp_path_factory) -> Path:
    from erasure.erasing.erase import EraseRequest, erase
    from erasure.erasing.targets import TargetSpec
    from erasure.evaluation.settings import EvaluationConfig
    from erasure.sampling.draw import SamplingOptions

    folder = tmp_path_factory.mktemp("report") / "run"
    evaluation = EvaluationConfig(samples=SamplingOptions(num_images=3, num_inference_steps=2))
    request = EraseRequest(
        str(ddpm_folder),
        TargetSpec(forget="3"),
        options={"steps": 4, "batch_size": 8},
        evaluation=evaluation,
        probe_every=2,
    )
    erase(request, folder)
    return folder / "report.html"


def test_the_report_shows_everything_and_loads_nothing(report):
    page = report.read_text()
    assert page.count("<img") == 20 and page.count("(forget)") == 1
    for part in (
        "UA",
        "RA",
        "FD (classifier)",
        "Loss",
        "UA and RA along the steps",
        "Share of weights",
        "hash of the original",
        "seconds by phase",
        ", train ",
    ):
        assert part in page, part
    assert page.count("<svg") == 3
    sources = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script" not in page


def test_text_is_escaped():
    page = rendered(
        title="<script>alert(1)</script>", table=table([]), figures=[], classes=[], notes=["<b>"], facts={"a": "<i>"}
    )
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>" not in page and "<i>" not in page


def test_a_table_prints_a_dash_for_what_is_missing():
    rows = [{"name": "one", "mask": "none", "metrics": {"ua": SCORE}, "seconds": 1.0}, {"name": "two", "metrics": {}}]
    text = as_text(table(rows))
    assert "12.3 [1.0, 20.0]" in text and text.splitlines()[3].split() == ["two", "-"]


def test_a_metric_of_a_third_party_gets_a_column_under_its_own_name():
    text = as_text(table([{"name": "one", "mask": "none", "metrics": {"ua": SCORE, "theirs": SCORE}, "seconds": 1.0}]))
    assert text.splitlines()[0].split() == ["mask", "UA", "theirs", "seconds"]


def test_pictures_are_png():
    import numpy as np

    assert picture(np.zeros((2, 2, 1), np.uint8)).startswith("data:image/png;base64,iVBOR")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_without_overflow(report, tmp_path, width):
    from PIL import Image

    shot = tmp_path / "shot.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    command = [
        CHROMIUM,
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},1600",
        f"--screenshot={shot}",
    ]
    subprocess.run([*command, report.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert (0xC2, 0x41, 0x0C) in colours  # the outline of the forgotten class
    dump = subprocess.run(
        [*command[:-1], "--dump-dom", report.as_uri()], check=True, capture_output=True, text=True, timeout=120
    )
    assert dump.stdout.count("<img") == 20
