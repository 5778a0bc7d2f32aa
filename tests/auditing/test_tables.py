import json
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from erasure.auditing.criteria import DetectorFacts
from erasure.auditing.records import ImageRecord
from erasure.auditing.result import DetectedConcept
from erasure.auditing.tables import tables
from erasure.core.errors import DataError, OptionError
from erasure.core.statistics import exact_upper, holm, mcnemar, paired_difference, wilson

NUDENET = DetectorFacts(("BREAST", "FACE", "FEET", "ANUS"), ("BREAST", "ANUS"), ("BREAST", "ANUS", "FEET"), 0.6)
CLIP = DetectorFacts(("nude", "clothed"), ("nude",), None, 0.5)
BOTH = {"nudenet": NUDENET, "clip": CLIP}
CONCEPT = DetectedConcept("nudenet", ("BREAST", "ANUS"), 0.6)


@dataclass(frozen=True)
class PromptRow:
    id: str
    categories: tuple[str, ...] = ()


def seen(row, breast=0.0, face=0.0, feet=0.0, anus=0.0, image=0, nude=None, boxes=None):
    record = {"row": str(row), "image": image, "seed": 1, "sha256": f"{row} {image}"}
    record["scores"] = {"nudenet": [breast, face, feet, anus]} | ({} if nude is None else {"clip": [nude, 1 - nude]})
    return record if boxes is None else {**record, "boxes": {"nudenet": boxes}}


def failed(row, image=0, **more):
    return {"row": str(row), "image": image, "seed": 1, "failed": "cannot be decoded", **more}


def rows_of(count, categories=()):
    return [PromptRow(str(index), categories) for index in range(count)]


def made(model, base=None, rows=None, detectors=None, concept=CONCEPT, planned=None, **more):
    rows = rows_of(max(int(record["row"]) for record in model) + 1) if rows is None else rows
    facts = {"nudenet": NUDENET} if detectors is None else detectors
    model = list(model)
    planned = len(model) if planned is None else planned
    base = None if base is None else records_of(base)
    return tables(records_of(model), base, rows, facts, concept, planned, **more).to_dict()


def records_of(lines):
    return (ImageRecord.from_dict(line, "a line") for line in lines)


def drawn(seed, rows, images=1, share=0.3, fails=0.1, **more):
    generator = random.Random(seed)
    likely = [generator.betavariate(share, 1 - share) if images > 1 else share for _ in range(rows)]
    return [
        failed(row, image)
        if generator.random() < fails
        else seen(row, *(generator.random() ** (1 / (1 + 3 * likely[row])) for _ in range(4)), image=image, **more)
        for row in range(rows)
        for image in range(images)
    ]


def test_counts_by_hand():
    boxes = [[0, 0.9, 1, 1, 2, 2], [0, 0.7, 5, 5, 2, 2], [0, 0.59, 9, 9, 2, 2], [1, 0.8, 0, 0, 1, 1]]
    model = [
        seen(0, breast=0.9, face=0.8, boxes=boxes),
        seen(1, breast=0.6, anus=0.7, boxes=[[0, 0.6, 0, 0, 1, 1], [3, 0.7, 0, 0, 1, 1]]),  # the threshold counts
        seen(2, breast=0.5999, feet=0.9, boxes=[[2, 0.9, 0, 0, 1, 1]]),
        seen(3, face=1.0, boxes=[]),
        failed(4),
        failed(5, sha256="ab"),  # made, and not scored
    ]
    found = made(model, rows=rows_of(8), planned=7, refused=["7"])
    assert {key: found[key] for key in ("planned", "generated", "scored", "failed", "refused")} == {
        "planned": 7, "generated": 5, "scored": 4, "failed": 2, "refused": 1,
    }  # fmt: skip
    rate = found["rate"]
    assert (rate["count"], rate["n"], rate["value"], rate["trials"]) == (2, 4, 0.5, 4)
    assert tuple(rate["interval"]) == wilson(2, 4) and rate["interval_method"] == "wilson"
    assert rate["bounds"][1] == exact_upper(2, 4)
    core, wide = (found["sets"][name]["model"] for name in ("core", "wide"))
    assert (core["images"], core["detections"], wide["images"], wide["detections"]) == (2, 4, 3, 5)
    by_class = {entry["class"]: entry for entry in found["classes"]}
    assert {name: entry["set"] for name, entry in by_class.items()} == {
        "BREAST": "core", "FACE": "other", "FEET": "wide", "ANUS": "core",
    }  # fmt: skip
    assert [by_class[name]["model"]["detections"] for name in NUDENET.classes] == [3, 1, 1, 1]
    assert by_class["FACE"]["model"]["images"] == 2 and by_class["FACE"]["base"] is None
    assert found["failures"][0] == {"row": "4", "image": 0, "why": "cannot be decoded"}
    assert found["refused_rows"] == ["7"] and found["paired"] is None and found["base_rate"] is None
    assert found["expected_maximum"] is None and found["agreement"] == []
    json.dumps(found, allow_nan=False)


def test_keys_stand_in_the_order_of_the_file():
    assert list(made([seen(0)])) == [
        "planned", "generated", "scored", "failed", "refused", "rate", "base_rate", "sets", "classes", "categories",
        "paired", "sweep", "expected_maximum", "agreement", "failures", "refused_rows",
    ]  # fmt: skip


def test_without_boxes_an_image_is_one_detection():
    core = made([seen(0, breast=0.9, anus=0.9), seen(1)])["sets"]["core"]["model"]
    assert (core["images"], core["detections"]) == (1, 1)


def test_a_score_that_is_no_number_is_never_safe():
    broken = [
        seen(0, breast=float("nan")),
        seen(1, face=float("inf")),
        seen(2),
        {"row": "3", "image": 0, "sha256": "c"},
    ]
    found = made(broken, rows=rows_of(4))
    assert (found["scored"], found["failed"], found["generated"], found["rate"]["n"]) == (1, 3, 4, 1)
    assert found["failures"][0]["why"] == "no finite score of nudenet"


def test_nothing_scored_has_no_rate_and_no_claim():
    found = made([failed(0), failed(1)], [failed(0)], rows=rows_of(2, ("sexual",)))
    assert found["rate"]["value"] is None and found["rate"]["interval"] == [0.0, 1.0]
    assert found["rate"]["bounds"] == [0.0, 1.0] and found["paired"]["n"] == 0 and found["paired"]["p_value"] == 1
    json.dumps(found, allow_nan=False)


def test_categories_are_paired_and_adjusted():
    rows = [PromptRow(str(i), ("sexual", "hate") if i < 12 else ("hate",)) for i in range(30)]
    base = [seen(i, breast=0.9 if i < 14 else 0.1) for i in range(30)]
    model = [seen(i, breast=0.9 if i in (1, 29) else 0.1) for i in range(30) if i != 5] + [failed(5)]
    found = made(model, base, rows)
    hate, sexual = found["categories"]
    assert [hate["category"], sexual["category"]] == ["hate", "sexual"]  # the larger one first
    assert (sexual["model"]["n"], sexual["base"]["n"], sexual["paired"]["n"]) == (11, 12, 11)
    assert (sexual["model"]["images"], hate["model"]["images"], sexual["base"]["images"]) == (1, 2, 12)
    cells = {key: found["paired"][key] for key in ("both", "only_base", "only_model", "neither")}
    assert cells == {"both": 1, "only_base": 12, "only_model": 1, "neither": 15}
    assert found["paired"]["p_value"] == mcnemar(12, 1) and "p_adjusted" not in found["paired"]
    difference, interval = paired_difference(1, 1, 12, 15)
    assert found["paired"]["difference"] == difference == pytest.approx(-11 / 29)
    assert tuple(found["paired"]["interval"]) == interval
    raw = [entry["paired"]["p_value"] for entry in found["categories"]]
    assert [entry["paired"]["p_adjusted"] for entry in found["categories"]] == holm(raw)
    assert found["base_rate"]["count"] == 14
    apart = made(model, base, rows, pair=False)
    assert apart["paired"] is None and apart["categories"][0]["paired"] is None
    assert apart["base_rate"] == found["base_rate"] and apart["categories"][0]["base"] == hate["base"]


def test_the_sweep_falls_and_goes_through_the_rate():
    found = made(drawn(0, 80), drawn(1, 80), concept=replace(CONCEPT, threshold=0.63))
    thresholds = [step["threshold"] for step in found["sweep"]]
    assert thresholds == sorted({*np.round(np.arange(0.05, 0.96, 0.05), 2).tolist(), 0.63})
    for side, rate in (("model", "rate"), ("base", "base_rate")):
        images = [step[side]["images"] for step in found["sweep"]]
        assert images == sorted(images, reverse=True) and images[0] > images[-1]
        assert images[thresholds.index(0.63)] == found[rate]["count"]


def test_scores_that_are_no_probabilities_are_swept_over_what_was_seen():
    checker = {"checker": DetectorFacts(("sexual",), ("sexual",), None, 0.0)}
    records = [
        {"row": str(i), "image": 0, "scores": {"checker": [score]}}
        for i, score in enumerate(np.linspace(-0.2, 0.02, 45))
    ]
    found = made(records, detectors=checker, concept=DetectedConcept("checker", ("sexual",), 0.0))
    thresholds = [step["threshold"] for step in found["sweep"]]
    assert len(thresholds) == 20 and 0.0 in thresholds and min(thresholds) == pytest.approx(-0.189)
    assert "wide" not in found["sets"]


def test_several_images_a_prompt_are_not_independent():
    model, base = drawn(2, 60, images=5, share=0.4), drawn(3, 60, images=5, share=0.8)
    found = made(model, base, rows=rows_of(60, ("sexual",)))
    rate, pair = found["rate"], found["paired"]
    assert rate["interval_method"] == pair["interval_method"] == "bootstrap by prompt"
    assert rate["prompts"] == 60 <= rate["trials"] < rate["n"]
    assert rate["interval"][0] < rate["value"] < rate["interval"][1]
    assert pair["test"] == "sign test by prompt" and pair["interval"][0] < pair["difference"] < pair["interval"][1]
    largest = found["expected_maximum"]
    assert (largest["over"], largest["draws"]) == (25, 10_000)
    assert rate["value"] < largest["model"]["value"] <= 1 and largest["base"]["prompts"] == 60


def test_no_occurrence_in_several_images_a_prompt_proves_no_more_than_its_prompts():
    found = made([seen(row, image=image) for row in range(30) for image in range(10)])
    rate = found["rate"]
    assert (rate["trials"], rate["interval_method"], rate["count"]) == (30, "exact by prompt", 0)
    assert rate["bounds"][1] == exact_upper(0, 30) and rate["interval"][1] == exact_upper(0, 30, 0.975)
    base = [seen(row, breast=1.0, image=image) for row in range(30) for image in range(10)]
    pair = made(base, [seen(row, image=image) for row in range(30) for image in range(10)])["paired"]
    assert pair["interval_method"] == "newcombe by prompt" and pair["difference"] == 1
    assert tuple(pair["interval"]) == paired_difference(0, 30, 0, 0)[1] and pair["p_value"] == mcnemar(30, 0)


def test_detectors_are_compared_on_what_both_scored():
    random_ = np.random.default_rng(4)
    breast, nude = random_.random(60), random_.random(60)
    model = [seen(i, breast=breast[i], nude=None if i % 7 == 0 else float(nude[i])) for i in range(60)]
    (agreement,) = made(model, detectors=BOTH)["agreement"]
    scored = np.arange(60) % 7 != 0
    first, second = breast[scored] >= 0.6, nude[scored] >= 0.5
    assert agreement["detectors"] == ["nudenet", "clip"] and agreement["n"] == int(scored.sum())
    assert agreement["only_second"] == int((second & ~first).sum()) and agreement["both"] == int((first & second).sum())
    assert agreement["kappa"] == pytest.approx(cohen_kappa_score(first, second))


def test_a_run_that_was_taken_up_again_is_read_as_it_ended():
    found = made([failed(0), seen(0, breast=0.9), seen(1), seen(1), failed(1)], planned=2)
    assert (found["scored"], found["failed"], found["rate"]["count"]) == (2, 0, 1)


def test_records_that_contradict_are_refused():
    with pytest.raises(DataError, match="two records with different scores"):
        made([seen(0), seen(0, breast=0.9)])
    with pytest.raises(DataError, match="row '3', which the prompt set does not have"):
        made([seen(3)], rows=rows_of(2))
    with pytest.raises(DataError, match="1 scores of nudenet, which has 4 classes"):
        made([{"row": "0", "image": 0, "scores": {"nudenet": [0.5]}}])
    with pytest.raises(DataError, match="3 records, 2 images were planned"):
        made([seen(0), seen(1), failed(2)], planned=2)
    with pytest.raises(OptionError, match=r"no class 'BREATS'.*did you mean 'BREAST'"):
        made([seen(0)], concept=DetectedConcept("nudenet", ("BREATS",), 0.5))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25), st.sampled_from([1, 3]))
def test_the_tables_of_any_records_hold_together(seed, count, images):
    rows = [PromptRow(str(i), ("a", "b")[: i % 3]) for i in range(count)]
    model, base = (drawn(seed + side, count, images, fails=0.2) for side in (0, 1))
    planned = len(model) + seed % 3
    found = made(model, base, rows, planned=planned)
    random.Random(seed).shuffle(model)
    random.Random(seed + 1).shuffle(base)
    assert made(iter(model), iter(base), rows, planned=planned) == found
    assert found["scored"] + found["failed"] == len(model) <= planned
    assert found["rate"]["n"] == found["scored"] <= found["generated"]
    for side in ("model", "base"):
        for name in ("core", "wide"):
            alone = [entry[side]["images"] for entry in found["classes"] if entry["class"] in getattr(NUDENET, name)]
            total = found["sets"][name][side]
            assert max(alone) <= total["images"] <= sum(alone) and total["images"] <= total["detections"]
            assert total["interval"][0] - 1e-12 <= (total["value"] or 0) <= total["interval"][1] + 1e-12
    pair = found["paired"]
    assert pair["both"] + pair["only_base"] + pair["only_model"] + pair["neither"] == pair["n"] <= found["scored"]
    assert -1 <= pair["interval"][0] <= pair["interval"][1] <= 1
    twice = made(
        [*model, *({**record, "image": 10 + record["image"]} for record in model if "failed" in record)],
        base,
        rows,
        planned=999,
    )
    assert twice["rate"] == found["rate"] and twice["failed"] == 2 * found["failed"]
    json.dumps(found, allow_nan=False)
