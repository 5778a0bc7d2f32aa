"""What the design promises: imports point down, plug-ins do not know each other, nothing heavy is loaded for a list."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import erasure
from erasure.cli import main
from erasure.cli.verbs import VERBS
from erasure.core import registry

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "erasure"

# Ground floor first: a folder imports itself and folders before it.
FOLDERS = """
core formats data prompts models sampling saliency training methods evaluation
reports erasing exporting auditing exact benchmarking cli
""".split()  # noqa: SIM905 (one short list)


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


def test_imports_between_folders_point_down():
    modules = _modules()
    assert {name.split(".")[0] for name in modules if "." in name} == set(FOLDERS)
    for name, tree in modules.items():
        folder = name.split(".")[0]
        if folder not in FOLDERS:  # __init__ and __main__ of the package
            continue
        above = FOLDERS[FOLDERS.index(folder) + 1 :]
        for imported in _imports(tree):
            assert imported.split(".")[0] not in above, f"{name} imports {imported}, whose folder stands above"


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


@pytest.mark.parametrize("kind", ["methods", "metrics", "detectors", "exact"])
def test_plugins_never_import_each_other(kind):
    modules = _modules()
    plugins = {registry.module_name(kind, name).removeprefix("erasure.") for name in registry.names(kind)}
    for name in plugins:
        assert not _imports(modules[name]) & plugins - {name}, name


def test_no_file_is_a_drawer():
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in ("utils", "helpers", "common", "misc")


def complexity(function: ast.AST) -> int:
    """McCabe (1976): one more than the conditions, of which `a and b` has two; nested functions are part of theirs."""
    branches = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
    nodes = list(ast.walk(function))
    compound = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return 1 + sum(isinstance(node, branches) for node in nodes) + compound


def _functions(tree: ast.AST, path: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        name = f"{path}.{getattr(node, 'name', '')}".rstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        else:
            yield from _functions(node, name)


def test_no_function_is_too_complex():
    functions = [pair for name, tree in _modules().items() for pair in _functions(tree, name)]
    assert not {name for name, function in functions if complexity(function) > 10}
    nested = ast.parse("def f(a):\n def g(): return 1 if a and b or c else 2\n for x in a:\n  if x: pass").body[0]
    assert complexity(nested) == 6


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
    from benchmarks.readme import PAGES, rewritten

    for page in PAGES:
        assert rewritten(page) == page.read_text(encoding="utf-8"), "run `make readme`"


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_the_commands_of_the_readme_run_as_they_stand(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = block[1].strip().splitlines()
    assert {command.split()[1] for command in commands} >= set(VERBS) - {"demo"}
    for command in commands:
        outcome = cli(*shlex.split(command)[1:])
        assert outcome.code == 0, (command, outcome.err)


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_the_python_of_the_readme_runs_as_it_stands(tmp_path):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "before-after.png").is_file() and done.stdout.endswith("True\n")


def test_every_verb_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"erasure {verb}" in readme, verb
    for folder in registry.LISTED:
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
