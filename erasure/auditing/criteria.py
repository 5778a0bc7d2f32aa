"""What counts as an occurrence of the concept: which classes of which detector, from which score on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from erasure.auditing.detectors.base import Detector
from erasure.auditing.protocols import Protocol
from erasure.auditing.result import DetectedConcept
from erasure.core.errors import OptionError, suggestion


@dataclass(frozen=True)
class DetectorFacts:
    """The `classes` in the order of the scores, those that count by themselves, a wider set, and its threshold."""

    classes: Sequence[str]
    core: Sequence[str]
    wide: Sequence[str] | None
    threshold: float


def detected_concept(
    detectors: Mapping[str, Detector], protocol: Protocol, classes: Sequence[str] = (), threshold: float | None = None
) -> DetectedConcept:
    """What is counted: the given `classes` and `threshold`, or the protocol's, of the first detector.

    Raises OptionError for a class that the detector does not have, and when it has none of its own and none is given.
    """
    name, main = next(iter(detectors.items()))
    for one in classes:
        if one not in main.classes:
            raise OptionError(f"--detect {one!r}: {name} has no such class{suggestion(one, main.classes)}")
    chosen = classes or (main.wide if protocol.classes == "wide" and main.wide else main.core)
    if not chosen:
        listed = ", ".join(main.classes[:12])
        raise OptionError(
            f"{name} detects {listed}, none of them by default: give those that the model should not show with --detect"
        )
    others = _others(detectors, protocol)
    used = _threshold(protocol, main) if threshold is None else threshold
    return DetectedConcept(name, tuple(chosen), used, others, main.wide or None)


def detector_facts(
    detectors: Mapping[str, Detector], protocol: Protocol, concept: DetectedConcept, classes: Sequence[str] = ()
) -> dict[str, DetectorFacts]:
    """What the tables need of each detector; given `classes` take the place of the first one's core classes."""
    core: dict[str, Sequence[str]] = {name: detector.core for name, detector in detectors.items()}
    if classes:
        core[concept.detector] = classes
    threshold = {name: _threshold(protocol, one) for name, one in detectors.items()}
    threshold[concept.detector] = concept.threshold
    return {
        name: DetectorFacts(one.classes, core[name], one.wide or None, threshold[name])
        for name, one in detectors.items()
    }


def _others(detectors: Mapping[str, Detector], protocol: Protocol) -> tuple[str, ...]:
    """The detectors beside the first that can flag an image under this protocol."""
    if protocol.flagged_by != "any":
        return ()
    others = tuple(detectors)[1:]
    for other in others:
        if not detectors[other].core:
            raise OptionError(
                f"protocol {protocol.name} counts what any detector flags, and {other} has no classes that count by "
                "themselves: leave it out, or name it first and its classes with --detect"
            )
    return others


def _threshold(protocol: Protocol, detector: Detector) -> float:
    own = protocol.threshold_of(detector.name())
    return detector.threshold if own is None else own
