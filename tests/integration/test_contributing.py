"""The example of CONTRIBUTING.md runs as printed, and its commands too."""

import re
import shlex
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.search(r"```sh\n(.*?)```", TEXT, re.DOTALL)[1].strip().splitlines()


@pytest.mark.parametrize("command", COMMANDS, ids=["file", "module"])
def test_the_example_method_runs_as_printed(command, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_method.py").write_text(EXAMPLE, encoding="utf-8")
    few = "--steps 2 --batch-size 8 --num-images 1 --num-inference-steps 2 --saliency-batch-size 512 --json"
    result = cli(*shlex.split(command)[1:], *few.split()).json
    assert result["changed_weights"] > 0
    records = [line for line in (Path(result["run"]) / "log.jsonl").read_text().splitlines() if '"retain"' in line]
    assert len(records) == 2
