"""Rewrite the tables of both README files from what was measured and from the plug-ins themselves: `make readme`.

Numbers come from benchmarks/demo.json, demo-full.json, audits.json, results.json and the plans' own files, which the
commands named there wrote. A test keeps pages and sources equal, so no number is typed by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from erasure.benchmarking.table import scenario_text, score
from erasure.core import registry
from erasure.reports.page import as_text, table

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "README.md"
DETAILS = ("forgotten", "kept", "mask_seconds")  # left to the tables of single scenarios, as is what explains them


def _read(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def demo() -> str:
    """What `erasure demo` prints."""
    return "\n\n".join(_scene(scene) for scene in _read("demo.json")["scenes"])


def full() -> str:
    """What `erasure demo --full` prints of the DDPM."""
    return "\n\n".join(_scene(scene) for scene in _scenes("ddpm-"))


def sd() -> str:
    """What `erasure demo --full` prints of Stable Diffusion."""
    return "\n\n".join(_scene(scene) for scene in _scenes("sd-"))


def _scenes(prefix: str) -> list[Any]:
    return [scene for scene in _read("demo-full.json")["scenes"] if scene["scene"].startswith(prefix)]


def _scene(scene: Any) -> str:
    title = scene["title"][0].upper() + scene["title"][1:]
    return f"{title}:\n\n```text\n{as_text(table(scene['rows']))}\n```"


def speed() -> str:
    """The ratios of `make bench`."""
    results = _read("results.json")
    rows = ["| of | ratio | measured | goal |", "|---|---|--:|--:|"]
    for of, part in results.items():
        for key, value in part.items() if isinstance(part, dict) else ():
            name, _, goal = key.partition(" (goal: ")
            if " / " in key:
                rows.append(f"| {of} | {name} | {value:.3g} | {goal.rstrip(')') or '-'} |")
    return "\n".join(rows)


def audits() -> str:
    """What audits of the cleaned small model found."""
    found = _read("audits.json")
    limit = f"verdict at {100 * found['max_rate']:g} %"
    rows = [f"| erased | prompts | base shows it | cleaned shows it | {limit} |", "|---|---|--:|--:|---|"]
    for row in found["rows"]:
        cells = []
        for side in ("base", "model"):
            low, high = (100 * end for end in row[side]["interval"])
            cells.append(f"{row[side]['count']} of {row[side]['n']} [{low:.1f}, {high:.1f}] %")
        rows.append(f"| {row['concept']} | {row['prompts']} | {cells[0]} | {cells[1]} | {row['verdict']} |")
    return "\n".join(rows)


def benchmark(name: str) -> str:
    """The tables of a plan, and what must be known of them."""
    found = _read(f"{name}.json")
    tables = [f"```text\n{scenario_text(scenario)}\n```" for scenario in found["scenarios"]]
    return "\n\n".join([*tables, " ".join([*found["notes"], _took(found)])])


def _took(found: Any) -> str:
    """How long a benchmark worked, all its commands together."""
    threads = "thread" if found["threads"] == "1" else "threads"
    return f"All of it took {found['seconds'] / 60:.0f} minutes on {found['threads']} {threads}."


def summary(name: str) -> str:
    """One table of a plan: the mean over its scenarios, with intervals over seeds."""
    found = _read(f"{name}.json")
    scenarios = found["scenarios"]
    rows = [
        _mean([scenario["rows"][i] for scenario in scenarios], len(found["seeds"]))
        for i in range(len(scenarios[0]["rows"]))
    ]
    table = {"title": "mean of: " + ", ".join(one["title"] for one in scenarios), "rows": rows}
    text = scenario_text({**table, "forget": "; ".join(one["forget"] for one in scenarios)})
    note = _took(found)
    notes = [part for part in re.split(r"(?<=\.) (?=['A-Z])", " ".join(found["notes"])) if not part.startswith("'")]
    return f"```text\n{text}\n```\n\n{' '.join([*notes, note])}"


def _mean(rows: list[Any], seeds: int) -> Any:
    """One row of several scenarios; a number that one of them lacks, for any seed, is left out."""
    names = [
        name
        for name in rows[0]["scores"]
        if name not in DETAILS and all(len(row["scores"].get(name, {}).get("values", ())) == seeds for row in rows)
    ]
    values = {name: zip(*(row["scores"][name]["values"] for row in rows), strict=True) for name in names}
    return {**rows[0], "scores": {name: score([sum(of) / len(rows) for of in values[name]]) for name in names}}


def searched(name: str) -> str:
    """The candidates of a search, the chosen ones marked."""
    found = _read(f"{name}-search.json")
    tables = [
        scenario_text(
            {
                **scenario,
                "rows": [
                    {
                        **row,
                        "name": f"{'* ' * row['chosen']}{row['name']}",
                        "scores": {key: value for key, value in row["scores"].items() if key not in DETAILS},
                    }
                    for row in scenario["rows"]
                ],
            }
        )
        for scenario in found["scenarios"]
    ]
    seeds = ", ".join(map(str, found["seeds"]))
    return "\n\n".join([*(f"```text\n{table}\n```" for table in tables), f"Seed {seeds}. Chosen (*): {found['rule']}."])


def plugins() -> str:
    """One row a plug-in, from the first line of its docstring."""
    rows = ["| kind | name | what it is |", "|---|---|---|"]
    kinds = {"methods": "method", "metrics": "metric", "detectors": "detector", "models": "model", "data": "data"}
    for folder, kind in kinds.items():
        for name in registry.names(folder):
            text = registry.summary(folder, name).removeprefix(f"{name}: ").rstrip(".")
            rows.append(f"| {kind} | `{name}` | {text} |")
    return "\n".join(rows)


ERASING = ("digits-sd", "digits-ddpm")
PARTS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "full": full,
    "sd": sd,
    "audits": audits,
    **{name: partial(summary, name) for name in ERASING},
    **{name: partial(benchmark, name) for name in ("digits", "digits-many-models", "cifar10-small")},
    "speed": speed,
    "plug-ins": plugins,
}
PARTS_OF_RESULTS: dict[str, Callable[[], str]] = {
    **{name: partial(benchmark, name) for name in ERASING},
    **{f"{name}-search": partial(searched, name) for name in ERASING},
    "ideas": partial(benchmark, "ideas"),
}
PAGES = {README: PARTS, RESULTS: PARTS_OF_RESULTS}


def rewritten(page: Path) -> str:
    """A page with every generated part made anew."""
    text = page.read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        begin, end = f"<!-- {name}: made by `make readme` -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"{page.relative_to(ROOT)} must hold the part {name!r} once")
        before, after = pattern.split(text)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page), encoding="utf-8")
