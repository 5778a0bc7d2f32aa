"""`python -m benchmarks.audits`: the shipped Stable Diffusion, cleaned of a digit or of a style, is audited for it.

The judge that ships stands in for a detector of the concept, prompts/audit/ are the prompts: every wording of a single
digit that the model was trained on, and digits in pairs. Writes audits.json, which the README's table is made of.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from erasure.auditing.api import audit_model
from erasure.auditing.result import Count, Rate
from erasure.erasing.erase import EraseRequest, erase
from erasure.erasing.targets import TargetSpec

CONCEPTS = ("three", "neon")
KINDS = ("single", "pair")
MAX_RATE = 0.05


def audited(concept: str, folder: Path) -> list[dict[str, Any]]:
    """A row for all prompts and one for each kind: single digits, pairs."""
    wanted = TargetSpec(concept=f"digits/{concept}")
    erase(EraseRequest("digits-sd", wanted, evaluate=False), folder / f"erased-{concept}")
    found = audit_model(
        folder / f"erased-{concept}",
        base="digits-sd",
        prompts=f"audit/{concept}",
        detectors={"image_classifier": {"model": "digits-sd-classifier"}},
        classes=(concept,),
        max_rate=MAX_RATE,
        out=folder / f"audit-{concept}",
    )
    rows = [("all", found.base_rate, found.rate, str(found.verdict))]
    rows += [(part.category, part.base, part.model, "") for part in found.categories if part.category in KINDS]
    return [
        {"concept": concept, "prompts": kind, "base": _share(base), "model": _share(model), "verdict": verdict}
        for kind, base, model, verdict in rows
    ]


def _share(rate: Rate | Count | None) -> dict[str, Any]:
    assert rate is not None
    count = rate.count if isinstance(rate, Rate) else rate.images
    return {"count": count, "n": rate.n, "value": rate.value, "interval": list(rate.interval)}


def main() -> int:
    """Erase, audit, write; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for concept in CONCEPTS for row in audited(concept, Path(folder))]
    path = Path(__file__).parent / "results" / "audits.json"
    path.write_text(json.dumps({"max_rate": MAX_RATE, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
