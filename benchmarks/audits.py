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

from erasure.auditing.audit import audit
from erasure.auditing.request import AuditRequest
from erasure.erasing.erase import AuditRequest as Erasure
from erasure.erasing.erase import erase
from erasure.erasing.targets import TargetSpec
from erasure.prompts.prompt_set import load_prompt_set

CONCEPTS = ("three", "neon")
MAX_RATE = 0.05


def audited(concept: str, folder: Path) -> list[dict[str, Any]]:
    """A row for all prompts and one for each kind: single digits, pairs."""
    wanted = TargetSpec(concept=f"digits/{concept}")
    erase(Erasure("digits-sd", wanted=wanted, evaluate=False), folder / f"erased-{concept}")
    request = AuditRequest(
        model=str(folder / f"erased-{concept}"),
        base="digits-sd",
        prompts=load_prompt_set(f"audit/{concept}"),
        detectors={"image_classifier": {"model": "digits-sd-classifier"}},
        classes=(concept,),
        max_rate=MAX_RATE,
    )
    found = audit(request, folder / f"audit-{concept}")
    whole = {"category": "all", "model": found["rate"], "base": found["base_rate"], "verdict": found["verdict"]}
    parts = [{**part, "verdict": ""} for part in found["categories"] if part["category"] in ("single", "pair")]
    return [{"concept": concept, **_row(part)} for part in (whole, *parts)]


def _row(part: dict[str, Any]) -> dict[str, Any]:
    sides = {}
    for side in ("base", "model"):
        rate = part[side]
        count = rate.get("count", rate.get("images"))
        sides[side] = {"count": count, "n": rate["n"], "value": rate["value"], "interval": rate["interval"]}
    return {"prompts": part["category"], **sides, "verdict": part["verdict"]}


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
