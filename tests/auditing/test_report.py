"""The report of an audit: what it says first, that it shows all, that no text and no image escapes into it."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from erasure.auditing.report import SHOWN, Thumbnail, flat, pixelated, probability, share, write_audit_report
from erasure.auditing.result import AuditResult, Count
from tests.support.audited import CATEGORIES, CORE, audited, count, rate_of
from tests.support.browser import asked, colours, dom, needs_browser, width_needed

EVIL = "<script>document.title = 'owned'</script>"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def page(tmp_path):
    def write(result, thumbnails=()):
        return write_audit_report(AuditResult.from_dict(result, "result"), tmp_path / "report.html", thumbnails)

    return write


def visible(path) -> str:
    """The words of a page, without its markup and its plots."""
    text = re.sub(r"(?s)<(style|svg).*?</\1>", " ", path.read_text())
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text.replace("<wbr>", "")))


def test_the_answer_comes_first_and_everything_else_follows(page):
    text = visible(page(audited()))
    shown = ["3 occurrences in 98 trials", "the exact bound is above", "at most 1 %", "at most 7.72 %", "3.06 %",
             "3 of 98", "63.3 %", "planned 101", "generated 99", "scored 98", "failed 2", "refused 1",
             "by -60.2 points", "positive: face classes", *CORE, "Wide classes", "FACE_FEMALE", *CATEGORIES, "0.37",
             "31.20", "FID was not measured: needs --inception", "the pixels are not finite", "safety filter: 57",
             "block.19.weight", "and 12 more", "LMSDiscreteScheduler", "b" * 64, "d" * 64, "2.13"]  # fmt: skip
    assert [part for part in shown if part not in text] == []
    order = ("Fail", "[1.05, 8.62]", "By class", "By category", "How this audit was made")
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert text.count("concept is erased") == text.count("does not prove that the concept is erased") == 1


def test_a_failed_control_is_marked(page):
    result = audited(controls=[{"name": "negative", "what": "noise", "images": 8, "flagged": 2, "passed": False,
                                "detector": "nudenet"}])  # fmt: skip
    assert '<td class="bad">FAILED</td>' in page(result).read_text()
    assert 'class="bad"' not in page(audited()).read_text().split("</style>")[1]


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive", "none"])
def test_every_verdict_is_a_word_and_a_colour(page, verdict):
    limit = None if verdict == "none" else 0.01
    path = page(audited(verdict=verdict, max_rate=limit, reasons=[]))
    assert f'<section class="verdict {verdict}">' in path.read_text()
    word = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "none": "No verdict"}[verdict]
    assert word in visible(path) and ("there is no verdict" in visible(path)) == (verdict == "none")


def test_an_audit_of_images_without_a_base_where_nothing_was_scored(page):
    empty = count(0, 0)
    one_sided = {"model": empty, "base": None}
    result = audited(
        base=None, base_rate=None, changed=None, paired=None, protocol=None, prompts=None, agreement=[],
        controls=[], metrics={}, not_measured={}, refused_rows=[], failures=[], failed=100, verdict="inconclusive",
        rate=rate_of(0, 0),
        sets={"core": one_sided, "wide": one_sided}, sweep=[{"threshold": 0.6, **one_sided}],
        classes=[{"class": "ANUS_EXPOSED", "set": "core", **one_sided}],
        categories=[{"category": "", **one_sided, "paired": None}],
    )  # fmt: skip
    path = page(result)
    assert "none scored" in visible(path) and "<svg" not in path.read_text() and "base:" not in visible(path)
    assert "The first 0 of 100 failures are listed" in visible(path)


def test_base_metrics_get_a_column_when_there_are_any(page):
    base = {**audited()["base"], "metrics": {"clip_score": audited()["metrics"]["clip_score"] | {"value": 33.25}}}
    assert "33.25" in visible(page(audited(base=base)))
    assert "n = 98 higher" in visible(page(audited()))  # no empty column without


def everywhere(value, added, keep=("verdict", "set", "test")):
    """The same plain values with `added` to every text and every name that a user or a file could have chosen."""
    if isinstance(value, dict):
        return {key: item if key in keep else everywhere(item, added) for key, item in value.items()}
    if isinstance(value, list):
        return [everywhere(item, added) for item in value]
    return value + added if isinstance(value, str) else value


def test_no_text_becomes_markup(page):
    result = everywhere(audited(), EVIL)
    result["controls"] = [{**control, "name": "positive"} for control in result["controls"]]
    result["metrics"] = {name + EVIL: score for name, score in result["metrics"].items()}
    result["not_measured"] = {name + EVIL: why for name, why in result["not_measured"].items()}
    text = page(result, [Thumbnail("1" + EVIL, "a" + EVIL, noise(64, 64), "0.9" + EVIL)]).read_text()
    assert "<script" not in text and text.count("&lt;script") > 60


def test_nothing_is_loaded_from_outside(page):
    text = page(audited(), [Thumbnail("1", "a", noise(64, 64))]).read_text()
    sources = re.findall(r"""(?:src|srcset|href|xlink:href|action|data)=["']([^"']*)""", text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_equal_block_means_give_equal_thumbnails():
    image = noise(120, 120)
    shuffled = image.reshape(12, 10, 12, 10, 3).transpose(0, 2, 1, 3, 4).reshape(144, 100, 3)
    shuffled = np.random.default_rng(1).permuted(shuffled, axis=1)
    other = shuffled.reshape(12, 12, 10, 10, 3).transpose(0, 2, 1, 3, 4).reshape(120, 120, 3)
    assert not np.array_equal(image, other)
    assert np.array_equal(pixelated(image), pixelated(other))
    expected = np.rint(image.reshape(12, 10, 12, 10, 3).mean(axis=(1, 3)))
    assert np.array_equal(pixelated(image)[::8, ::8], expected)


@pytest.mark.parametrize(
    ("size", "blocks"),
    [((512, 512), (12, 12)), ((768, 512), (12, 8)), ((32, 32), (8, 8)), ((7, 5), (1, 1)), ((3, 900), (1, 12))],
)
def test_a_thumbnail_holds_few_blocks_whatever_the_size(size, blocks):
    small = pixelated(noise(*size))
    assert small.shape == (blocks[0] * 8, blocks[1] * 8, 3)
    assert np.array_equal(small[::8, ::8].repeat(8, 0).repeat(8, 1), small)
    flat_image = np.full((*size, 1), 200, np.uint8)
    assert (pixelated(flat_image) == 200).all()


def test_the_page_pixelates_what_it_is_given(page):
    image = noise(256, 256)
    text = page(audited(), [Thumbnail("17", "a prompt", image)]).read_text()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    embedded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(embedded, pixelated(image))
    assert "17" in text and "a prompt" in text
    assert "<img" not in page(audited()).read_text()


def test_a_page_shows_a_bounded_number_of_thumbnails(page):
    path = page(audited(), [Thumbnail(str(i), "a", noise(16, 16)) for i in range(SHOWN + 1)])
    assert path.read_text().count("<img") == SHOWN and f"The first {SHOWN} of {SHOWN + 1} are shown" in visible(path)


def test_numbers_as_they_are_shown():
    some, none = (Count.from_dict(count(images, n), "count") for images, n in ((3, 98), (0, 0)))
    assert share(some) == {
        "value": "3.06 %",
        "interval": "[1.05, 8.62]",
        "n": "3 of 98",
        "detections": "detections: 4",
    }
    assert share(None) is None and share(none)["n"] == "none scored"
    assert [probability(p) for p in (1e-9, 0.0123, 0.5)] == ["< 0.0001", "= 0.0123", "= 0.50"]
    nested = {"a": {"b": {"c": 1}, "d": [1.5, True]}, "e": None, "f": {}}
    assert flat(nested) == {"a.b.c": "1", "a.d": "1.5, yes", "e": "-", "f": "-"}


@needs_browser
def test_a_browser_shows_it_runs_nothing_and_asks_for_nothing(page, tmp_path):
    with asked() as (address, paths):
        evil = f'{EVIL}<img src="{address}/leak.png" onerror="document.title = 1"><style>@import "{address}/x";</style>'
        result = audited(failures=[{"row": "1", "image": 0, "why": evil}], claim=evil)
        shown = dom(page(result, [Thumbnail("1", evil, noise(64, 64))]))
        assert paths == []
        assert "<title>Audit of sd-cleaned</title>" in shown and shown.count("<svg") == 2
        assert shown.count("<img") == 1 and "<script" not in shown and "&lt;script&gt;" in shown
        bare = tmp_path / "bare.html"
        bare.write_text(f'<img src="{address}/leak.png">')
        dom(bare)
        assert "/leak.png" in paths  # the server would have noticed


@needs_browser
def test_the_policy_alone_stops_what_is_in_the_page(page):
    with asked() as (address, paths):
        path = page(audited())
        added = f'<script>document.title = "owned"</script><img src="{address}/leak.png">'
        path.write_text(path.read_text().replace("</h1>", "</h1>" + added))
        assert "<title>Audit of sd-cleaned</title>" in dom(path) and paths == []


@needs_browser
def test_a_phone_draws_the_verdict_and_never_scrolls_sideways(page, tmp_path):
    path = page(audited(), [Thumbnail("1", "long" * 60, noise(64, 64))])
    assert width_needed(path, 360) <= 360
    assert (0xB9, 0x1C, 0x1C) in colours(path, 390, tmp_path)
