"""Audits side by side: the same conditions or none, tests adjusted, and no low value lost."""

import re

import pytest

from erasure.auditing.compare import as_text, compare
from erasure.core.statistics import holm
from tests.support.audited import CORE, audited, pairs, rate_of, score, written
from tests.support.browser import dom, needs_browser, width_needed

METRICS = {"clip_score": score(31.2), "fid": score(12.5, higher=False)}


@pytest.fixture
def three(tmp_path):
    """Three audits: one that shows the concept most, one with a low CLIP score and a high FID, one without FID."""
    folders = [
        written(
            tmp_path / "a",
            audited(9, name="one", metrics=METRICS, not_measured={}, paired=pairs(55, 2, 98, 0.02)),
        ),
        written(
            tmp_path / "b",
            audited(
                2, name="two", metrics={"clip_score": score(24.1), "fid": score(40.0, higher=False)}, not_measured={},
                paired=pairs(60, 0, 98, 0.01),
            ),
        ),
        written(
            tmp_path / "c",
            audited(
                3, name="three", verdict="inconclusive", metrics={"clip_score": score(30.0)},
                not_measured={"fid": "needs --inception"}, paired=pairs(59, 1, 98, 0.04),
            ),
        ),
    ]  # fmt: skip
    return [str(folder) for folder in folders]


def test_every_model_has_its_row_beside_one_base(three):
    result = compare(three)
    assert [row.name for row in result.rows] == ["one (a)", "two (b)", "three (c)"]
    assert [row.verdict for row in result.rows] == ["fail", "fail", "inconclusive"]
    assert [row.name for row in result.bases] == ["base: sd-1.4"] and result.bases[0].rate.count == 62
    assert [row.paired.p_adjusted for row in result.rows] == holm([0.02, 0.01, 0.04])
    assert result.rows[0].classes[CORE[0]].images == 9


def test_the_worst_value_of_every_number_is_named(three):
    worst = {entry.metric: (entry.which, entry.value, entry.models) for entry in compare(three).worst}
    assert worst == {
        "rate": ("highest", 9 / 98, ("one (a)",)),
        "clip_score": ("lowest", 24.1, ("two (b)",)),
        "fid": ("highest", 40.0, ("two (b)",)),
    }
    assert compare(three).missing == ("FID was not measured for three (c): needs --inception",)


def test_what_is_alike_is_not_called_worst(tmp_path):
    folders = [str(written(tmp_path / name, audited(3, name=name))) for name in "ab"]
    assert compare(folders).worst == () and compare(folders[:1]).worst == ()


def test_the_text_table(three, cli):
    text = cli("compare", *three).out
    assert text.rstrip("\n") == as_text(compare(three))
    lines = text.splitlines()
    assert lines[2].split()[:5] == ["base:", "sd-1.4", "62", "of", "98"]
    two = ["two (b)", "fail", "2 of 98", "2.04 [0.56, 7.14]", "0.0100", "0.0300", "24.10 [22.89, 25.31]"]
    assert re.split(r" {2,}", lines[4])[:7] == two
    assert "CLIP score: lowest 24.10, two (b)" in lines and "Rate: highest 9.18 %, one (a)" in lines
    assert any(line.split()[0] == CORE[0] and line.split()[-3:] == ["3", "of", "98"] for line in lines if line)
    assert "FID was not measured for three (c): needs --inception" in lines


def test_the_page_frames_the_worst_cells_and_plots_each_metric(three, cli, tmp_path):
    result = cli("compare", *three, "--html", tmp_path / "page.html", "--json").json
    assert result["html"] == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    framed = [
        re.sub(r"<[^>]+>.*", "", cell, flags=re.S).strip()
        for cell in re.findall(r'(?s)<td class="worst">(.*?)</td>', page)
    ]
    assert framed == ["9.18 %", "24.10", "40.00"]
    assert page.count("<svg") == 3 and page.count('class="chip ') == 3
    assert "a" * 64 in page and "i2p-esd" in page


def changed(key, **values):
    return {key: {**audited()[key], **values}}


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (changed("prompts", rows_hash="e" * 64), "prompts.rows_hash differs"),
        (changed("protocol", num_inference_steps=20), "protocol.num_inference_steps differs (50 and 20)"),
        (changed("protocol", extra="x"), "protocol.extra differs (- and x)"),
        (changed("concept", threshold=0.5), "concept.threshold differs (0.6 and 0.5)"),
        (
            {"detectors": {"nudenet": {**audited()["detectors"]["nudenet"], "hash": "x"}}},
            "detectors.nudenet.hash differs",
        ),
        ({"seed": 1}, "seed differs (0 and 1)"),
        ({"seed": 1, **changed("concept", threshold=0.5)}, "and 1 more"),
    ],
)
def test_audits_under_different_conditions_are_refused(tmp_path, refused, difference, said):
    first = written(tmp_path / "a", audited())
    second = written(tmp_path / "b", audited(**difference))
    line = refused("compare", first, second)
    assert said in line and str(first) in line and str(second) in line


def test_bases_share_a_row_only_when_they_are_the_same(tmp_path):
    result = audited()
    other = {**result["base"], "hash": "c" * 64, "name": "sd-1.5"}
    folders = [str(written(tmp_path / "a", result)), str(written(tmp_path / "b", audited(base=other)))]
    assert [row.name for row in compare(folders).bases] == ["base: sd-1.4 (1)", "base: sd-1.5 (2)"]


def test_an_audit_without_base_has_no_test(tmp_path):
    alone = audited(base=None, base_rate=None, paired=None)
    folders = [str(written(tmp_path / "a", audited(paired=pairs(5, 1, 98, 0.2)))), str(written(tmp_path / "b", alone))]
    result = compare(folders)
    assert result.rows[0].paired.p_adjusted == 0.2 and result.rows[1].paired is None
    assert "sd-cleaned (b) has no pairs with a base model" in result.missing


def test_a_model_without_scored_images_is_listed_and_not_ranked(tmp_path):
    none = audited(rate=rate_of(0, 0), verdict="inconclusive")
    folders = [str(written(tmp_path / "a", audited(9))), str(written(tmp_path / "b", none))]
    result = compare(folders, tmp_path / "page.html")
    assert "sd-cleaned (b) has no rate: none of its images were scored" in result.missing
    assert "rate" not in {entry.metric for entry in result.worst} and "none scored" in as_text(result)


def test_images_without_recorded_prompts_come_with_a_warning(tmp_path):
    folders = [str(written(tmp_path / name, audited(prompts=None, protocol=None))) for name in "ab"]
    assert any("prompts of these images are not on record" in line for line in as_text(compare(folders)).splitlines())


def test_two_folders_of_one_name_stay_apart(tmp_path):
    folders = [str(written(tmp_path / name / "audit", audited())) for name in "ab"]
    names = [row.name for row in compare(folders).rows]
    assert names == [f"sd-cleaned ({folder})" for folder in folders]


def test_only_finished_audits_of_this_schema_and_of_one_kind(tmp_path, refused):
    good = written(tmp_path / "good", audited())
    assert "not a finished" in refused("compare", good, written(tmp_path / "half", audited(), status="running"))
    assert "schema 2" in refused("compare", good, written(tmp_path / "newer", audited(schema=2)))
    assert "is an audit and" in refused("compare", good, written(tmp_path / "run", {}, verb="erase"))
    short = {key: value for key, value in audited().items() if key != "rate"}
    assert "no 'rate'" in refused("compare", good, written(tmp_path / "short", short))
    (good / "audit.json").unlink()
    assert "audit.json does not exist" in refused("compare", good)


@needs_browser
def test_a_browser_shows_the_marks_and_runs_nothing(three, tmp_path):
    evil = written(tmp_path / "evil", audited(name="<script>document.title = 'owned'</script>", reasons=["<b>"]))
    page = tmp_path / "page.html"
    compare([*three, str(evil)], page)
    shown = dom(page)
    assert "<title>Comparison of audits</title>" in shown and "<script" not in shown and "<b>" not in shown
    assert shown.count('class="worst"') >= 3 and shown.count("<svg") == 4
    assert width_needed(page, 360) <= 360
