"""What the design promises: imports point down, plug-ins do not know each other, nothing heavy is loaded for a list."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import erasure
from erasure import registry
from erasure.cli import VERBS, main

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "erasure"

# From the ground up; a module may import only what stands on an earlier line, or before it on its own.
LAYERS = """
errors seeds notes guard litter
prompt_file wording concepts prompt_rows scenes
registry task options run room
prompt_set protocols
weights array_file tensor_file images statistics plots processes
audit_counts audit_scores audit_tables verdict
data._base data
data.image_folder data._cifar data.cifar10 data.cifar100 data.digits data.digits_styles data.hub
data.svhn data.tiny_imagenet
forget_sets
mask
models._base models._steering models._diffusion models._text models._components
models._layout_names models._layout models._kinds models._tokenizer single_file
models.ddpm models._networks models.classifier models.stable_diffusion models.sdxl models._flow models.sd3 models.flux
models._single models
delta contents lora provenance model_card forms
free_weights optimizers checkpoint memory teacher
curvature answers membership
latents optimise
saliency recipe recipe_sd samples distances inception clip dinov2
evidence
text_training attention_maps low_rank
methods methods._base methods._relabel methods._one_step methods._keys methods._attention methods._closed_form
methods._esd methods._steering metrics metrics._base
plugins
judges text_evidence judging material
subjects._base subjects.classes subjects.samples subjects.words subjects
report audit_report compare_audits audit_evidence
evaluate train generate export verify
boxes detectors._base detectors
controls ledger trials audit_sides audit_result audit
make_mask moved erase
many_models benchmark_plan benchmark_file benchmark_cells benchmark_erasing benchmark_table benchmark_page benchmark
benchmark_search influence
compare demo
exact._selection exact._log exact._base exact.sisa exact.arcane
exact._plan exact._training exact._service exact._prediction exact._fitting exact._verification exact
parser
commands commands._shown
verbs
cli
__init__ __main__
"""


def _rank() -> dict[str, int]:
    return {name: i for i, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}


def _modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def _imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("erasure.") for name in found if name.startswith("erasure.")}


def _known_rank(name: str, rank: dict[str, int]) -> int | None:
    if name in rank:
        return rank[name]
    folder, _, rest = name.partition(".")
    kinds = {"methods": "plugins", "metrics": "plugins", "detectors": "detectors", "commands": "verbs"}
    return rank[kinds[folder]] if folder in kinds and rest and "." not in rest else None


def test_imports_point_down():
    rank, modules = _rank(), _modules()
    for name, tree in modules.items():
        own = _known_rank(name, rank)
        assert own is not None, f"{name} has no place in LAYERS"
        for imported in _imports(tree) & set(modules) - {name}:
            theirs = _known_rank(imported, rank)
            assert theirs is not None, f"{imported} has no place in LAYERS"
            assert theirs <= own, f"{name} imports {imported}, which stands above it"
    assert set(rank) - {"plugins", "verbs"} <= set(modules)


def test_no_import_cycle():
    modules = _modules()
    graph = {name: _imports(tree) & set(modules) - {name} for name, tree in modules.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("folder", ["methods", "metrics"])
def test_plugins_never_import_each_other(folder):
    for name, tree in _modules().items():
        if name.startswith(f"{folder}.") and not name.split(".")[1].startswith("_"):
            others = {f"{folder}.{other}" for other in registry.names(folder)} - {name}
            assert not _imports(tree) & others, name


def test_files_are_short_and_none_is_a_drawer():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
        assert path.stem not in ("utils", "helpers", "common", "misc")


def test_functions_are_short():
    for name, tree in _modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{name}.{node.name}"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "methods"], ["list", "data", "--json"], ["erase", "--version"], ["nonsense"]]
)
def test_help_and_lists_load_no_torch(arguments):
    if arguments == ["erase", "--version"]:
        arguments = ["--version"]
    heavy = "bool({'torch', 'numpy'} & set(sys.modules))"
    code = f"import sys; from erasure.cli import main; main({arguments!r}); sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_importing_the_package_costs_nothing():
    code = "import sys, erasure; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_there():
    for name in erasure.__all__:
        assert getattr(erasure, name).__doc__
    assert set(erasure.__all__) <= set(dir(erasure))
    with pytest.raises(AttributeError):
        erasure.nothing  # noqa: B018


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_ends_with_two_commands_that_parse(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    examples = re.findall(r"^  (erasure .*)$", text.split("examples:")[1], re.MULTILINE)
    assert len(examples) == 2 and all(example.startswith(f"erasure {verb}") for example in examples)
    assert "--json" in text


def test_the_tables_of_the_pages_are_what_was_measured():
    from tests.readme import PAGES, rewritten

    for page in PAGES:
        assert rewritten(page) == page.read_text(encoding="utf-8"), "run `make readme`"


@pytest.mark.timeout(800)
def test_the_commands_of_the_readme_run_as_they_stand(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = block[1].strip().splitlines()
    assert {command.split()[1] for command in commands} >= set(VERBS) - {"demo"}
    for command in commands:
        outcome = cli(*shlex.split(command)[1:])
        assert outcome.code == 0, (command, outcome.err)


def test_every_verb_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"erasure {verb}" in readme, verb
    for folder in registry.FOLDERS:
        for name in registry.names(folder):
            assert f"`{name}`" in readme, f"{folder}: {name}"


def test_nothing_of_the_workplace_is_in_the_tree():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split():
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".json", ".toml", ".txt", ".html", ".csv")
            and path.is_file()
            and path != Path(__file__)
        ):
            text = path.read_text(encoding="utf-8")
            assert "/work/" not in text and "/root/" not in text and "/tmp/" not in text, name
