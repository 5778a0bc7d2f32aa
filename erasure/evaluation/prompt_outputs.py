"""Outputs of a text-to-image model: images of a concept's prompts, and what a labeler sees in them.

A prompt says what it shows as (domain, value) pairs. The values that only forget prompts show are erased; all others
are kept. A domain that is named twice means two things side by side.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from erasure.core.errors import NotApplicableError
from erasure.core.rng import derive_seed
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.evaluation.classifiers import ImageLabeler, ImageLabels
from erasure.evaluation.features.clip import clip_scores, load_clip
from erasure.evaluation.features.spaces import cached_features, need_network
from erasure.evaluation.outputs import IMAGES_A_ROW, GeneratorOutputs, Kind, Part, PictureRow
from erasure.evaluation.settings import EvaluationConfig
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.concept import Concept, Prompt
from erasure.prompts.concept_csv import Shows
from erasure.sampling.draw import IMAGES_A_PROMPT, LabeledImages, PlannedSample, draw_items, path_of

GRID = 12
UNLABELED = 8


def shown_by(dataset: Dataset) -> list[Shows]:
    """What each class of a data set shows, as (domain, value) pairs in order."""
    return [
        tuple(
            (aspect.domain or name, aspect.names[aspect.of_class[label]])
            for name, aspect in dataset.aspects.items()
            if aspect.names[aspect.of_class[label]] != "none"
        )
        for label in range(len(dataset.class_names))
    ]


def unseen_prompts(concept: Concept, dataset: Dataset, count: int, seed: int) -> tuple[Prompt, ...]:
    """`count` captions of the data set that show what is erased and are not among the concept's prompts.

    Half of them, as far as there are enough, show one thing of a domain and half show several. The seed chooses, and
    takes a class again only after all others. Raises NotApplicableError for a data set without such captions.
    """
    known, erased = set(concept.table()), concept.erased
    kinds: dict[bool, list[tuple[int, float, str, Shows]]] = {False: [], True: []}
    generator = torch.Generator().manual_seed(derive_seed(seed, "unseen"))
    for captions, shows in zip(dataset.captions, shown_by(dataset), strict=bool(dataset.captions)):
        if erased & set(shows):
            several = max(Counter(domain for domain, _ in shows).values()) > 1
            left = [text for text in captions if text not in known]
            places = sorted(zip(torch.rand(len(left), generator=generator).tolist(), left, strict=True))
            kinds[several] += [(turn, place, text, shows) for turn, (place, text) in enumerate(places)]
    alone, beside = sorted(kinds[False]), sorted(kinds[True])
    if not alone and not beside:
        raise NotApplicableError(
            "num_unseen needs data with captions that show what is erased, other than the prompts to forget"
        )
    half = min(len(beside), max(count // 2, count - len(alone)))
    return tuple(Prompt(text, "", shows) for _, _, text, shows in (*alone[: count - half], *beside[:half]))


class ShownValue(NamedTuple):
    """A value that row number `row` shows, at its place among those of its domain."""

    row: int
    domain: str
    place: int
    value: str

    @property
    def pair(self) -> tuple[str, str]:
        """The domain and the value."""
        return self.domain, self.value


class PromptOutputs(GeneratorOutputs):
    """Images that a text-to-image model generates for a concept's prompts; without `labeler` they are only shown.

    `rows` are the prompts: by default all that say what they show; without a labeler a few of each kind.
    """

    default_metrics = ("ua", "ira", "cra", "composition", "fd_classifier", "paired_distance")
    model: StableDiffusion

    def __init__(
        self,
        model: StableDiffusion,
        concept: Concept,
        task: Task,
        dataset: Dataset,
        folder: Path,
        config: EvaluationConfig,
        *,
        rows: tuple[Prompt, ...] = (),
        labeler: ImageLabeler | None = None,
        original: GeneratorOutputs | None = None,
    ) -> None:
        super().__init__(model, task, dataset, folder, config, original=original)
        if labeler is None:  # nothing will be measured by prompt: a few pictures of each kind are enough
            rows = (*concept.forget[:UNLABELED], *concept.retain[:UNLABELED])
        self.rows = rows or tuple(row for row in (*concept.forget, *concept.retain) if row.shows)
        self.count = config.samples.num_images or IMAGES_A_PROMPT
        self.concept, self._labeler = concept, labeler

    def of_rows(self, rows: tuple[Prompt, ...]) -> PromptOutputs:
        """The outputs for these prompts alone; the labeler, the folder and the original stay."""
        place = (self.model, self.concept, self.task, self.dataset, self.folder, self.config)
        return PromptOutputs(*place, rows=rows, labeler=self._labeler, original=self.original)

    @property
    def labeler_hash(self) -> str | None:
        """Hash of the labeler, None without one."""
        return None if self._labeler is None else self._labeler.hash

    @property
    def _row_labels(self) -> list[int]:
        return [self.task.class_names.index(row.text) for row in self.rows]

    @cached_property
    def samples(self) -> LabeledImages:
        """`num_images` images of each row; their seeds depend on the words alone, so images of two models are pairs."""
        items = [
            PlannedSample(
                label,
                derive_seed(self.config.sample_seed, "sample", row.text, i),
                path_of(self.model, self.folder, label, i),
            )
            for row, label in zip(self.rows, self._row_labels, strict=True)
            for i in range(self.count)
        ]
        return draw_items(self.model, items, self.config.samples)

    @cached_property
    def _labels(self) -> ImageLabels:
        if self._labeler is None:
            raise NotApplicableError(
                "no classifier was given to label the images: give --classifier (a model folder or id, or clip:ID), "
                "and prompts that say what they show (the column `shows`)"
            )
        return self._labeler.describe(self.samples.images)

    def chosen(self, part: Part) -> np.ndarray:
        """Which images were asked for by forget or by retain prompts, (n,) booleans."""
        forgotten = np.isin(self.samples.labels, self.task.forget)
        return forgotten if part == "forget" else ~forgotten

    @cached_property
    def _shown_values(self) -> list[ShownValue]:
        """Everything that the rows show."""
        found = []
        for number, row in enumerate(self.rows):
            places: Counter[str] = Counter()
            for domain, value in row.shows:
                found.append(ShownValue(number, domain, places[domain], value))
                places[domain] += 1
        return found

    def _hits(self, shown: list[ShownValue]) -> np.ndarray:
        """Whether the labeler sees each value in its place, in its row's images, (len(shown) * num_images,)."""
        count, seen = self.count, self._labels.values
        return np.concatenate(
            [
                seen[domain][row * count : (row + 1) * count, place] == value
                for row, domain, place, value in _some(shown)
            ]
        )

    def _anywhere(self, shown: list[ShownValue]) -> np.ndarray:
        """The same anywhere in the image; a value that a row names twice counts once."""
        count, seen = self.count, self._labels.values
        named = dict.fromkeys((row, domain, value) for row, domain, _, value in _some(shown))
        return np.concatenate(
            [(seen[domain][row * count : (row + 1) * count] == value).any(axis=1) for row, domain, value in named]
        )

    def _is_forget(self, row: int) -> bool:
        return self._row_labels[row] in self.task.forget

    def correct(self, part: Part) -> np.ndarray:
        """Whether the erased value is seen anywhere (forget), or other values of its domain in their place (retain)."""
        erased = self.concept.erased
        domains = {domain for domain, _ in erased}
        if part == "forget":
            return self._anywhere(
                [one for one in self._shown_values if self._is_forget(one.row) and one.pair in erased]
            )
        kept = [one for one in self._shown_values if not self._is_forget(one.row) and self._single(one)]
        return self._hits([one for one in kept if one.domain in domains])

    def across(self) -> np.ndarray:
        """Whether values of other domains are seen, and in forget rows all values that were not erased."""
        erased = self.concept.erased
        domains = {domain for domain, _ in erased}

        def counts(one: ShownValue) -> bool:
            beside_erased = self._is_forget(one.row) and bool(domains & self._erased_in(one.row))
            return one.pair not in erased and self._single(one) and (one.domain not in domains or beside_erased)

        return self._hits([one for one in self._shown_values if counts(one)])

    def correct_in(self, kind: Kind) -> np.ndarray:
        """Whether what retain prompts name is seen, in the erased domain, across others, or all of it at once."""
        return {"domain": lambda: self.correct("retain"), "across": self.across, "together": self.together}[kind]()

    def clip_scores(self, part: Part) -> tuple[np.ndarray, str]:
        """CLIP's score of each image of the part against its prompt, (n,), and the model's name."""
        given = self.config.clip
        need_network("clip", given)
        assert given is not None
        clip = load_clip(given, self.model.device)
        return clip_scores(clip, self.samples.images[self.chosen(part)], self.texts(part)), given

    def _erased_in(self, row: int) -> set[str]:
        return {domain for domain, value in self.rows[row].shows if (domain, value) in self.concept.erased}

    def _single(self, one: ShownValue) -> bool:
        """Whether its row shows one thing of each domain."""
        return max(Counter(domain for domain, _ in self.rows[one.row].shows).values()) == 1

    def together(self) -> np.ndarray:
        """Whether the labeler sees everything at once that a composition to retain shows, one boolean an image."""
        rows = sorted({one.row for one in self._shown_values if not self._single(one) and not self._is_forget(one.row)})
        if not rows:
            raise NotApplicableError("no prompt to retain shows two things of one domain")
        hits = [self._hits([one for one in self._shown_values if one.row == row]) for row in rows]
        return np.concatenate([of_row.reshape(-1, self.count).all(axis=0) for of_row in hits])

    def features(self, part: Part) -> np.ndarray:
        """The labeler's pooled features of the images, (n, d)."""
        return self._labels.features[self.chosen(part)]

    def reference(self, part: Part) -> Dataset:
        """Real images that show what the part's rows show."""
        if not self.dataset.aspects:
            raise NotApplicableError(
                "there are no real images to compare with: give --data, a data set that says what its images show"
            )
        forgotten = part == "forget"
        wanted = {
            frozenset(Counter(row.shows).items()) for i, row in enumerate(self.rows) if self._is_forget(i) == forgotten
        }
        shown = [frozenset(Counter(shows).items()) for shows in shown_by(self.dataset)]
        return self.dataset.of_classes([label for label, what in enumerate(shown) if what in wanted])

    def reference_features(self, part: Part) -> np.ndarray:
        """The labeler's pooled features of real images, (m, d): computed once, then read from the user's cache."""
        reference = self.reference(part)
        if self._labeler is None:
            raise NotApplicableError("no classifier was given to compute features: give --classifier")
        labeler = self._labeler
        return cached_features(reference, labeler.hash, lambda images: labeler.describe(images).features)

    def texts(self, part: Part) -> list[str]:
        """The prompt of each image of the part."""
        return [self.task.class_names[label] for label in self.samples.labels[self.chosen(part)]]

    def picture(self) -> list[PictureRow]:
        """A grid of two domains (styles down, digits across) if the prompts fill one; else a row for each prompt."""
        count = self.count
        first = {row.shows: self.samples.images[i * count] for i, row in enumerate(self.rows)}
        pairs = [shows for shows in first if len(shows) == 2 and shows[0][0] != shows[1][0]]
        across = list(dict.fromkeys(shows[0] for shows in pairs))
        down = list(dict.fromkeys(shows[1] for shows in pairs))
        if pairs and len(pairs) == len(across) * len(down) and max(len(across), len(down)) <= GRID:
            across.sort(key=self._order_of)
            down.sort(key=self._order_of)
            erased = self.concept.erased
            return [PictureRow(d[1], np.stack([first[a, d] for a in across]), d in erased) for d in down]
        shown = [i for part in (True, False) for i in range(len(self.rows)) if self._is_forget(i) == part][: 2 * GRID]
        return [
            PictureRow(
                self.rows[i].text,
                self.samples.images[i * count : i * count + min(count, IMAGES_A_ROW)],
                self._is_forget(i),
            )
            for i in shown
        ]

    def _order_of(self, shown: tuple[str, str]) -> int:
        """The place of a value in the real data's list, so that digits stand in their order."""
        names = [name for aspect in self.dataset.aspects.values() for name in aspect.names]
        return names.index(shown[1]) if shown[1] in names else len(names)


def _some(shown: list[ShownValue]) -> list[ShownValue]:
    """The values; raises NotApplicableError when there are none."""
    if not shown:
        raise NotApplicableError("no prompt shows anything of that kind (the column `shows`)")
    return shown
