"""Shell completion knows every verb, and the options of every method and detector."""

import subprocess

import pytest

from erasure.cli.completion import SHELLS
from erasure.cli.verbs import VERBS
from erasure.core import registry

ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_shtab_erasure
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    import shtab

    from erasure.cli.completion import command_line

    path = tmp_path_factory.mktemp("completion") / "erasure.bash"
    path.write_text(shtab.complete(command_line(), "bash"))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("erasure ''", set(VERBS)),
        ("erasure erase --method ''", set(registry.names("methods"))),
        ("erasure erase --negative-g", {"--negative-guidance"}),
        ("erasure erase --optimizer adamw", {"adamw", "adamw8bit"}),
        ("erasure exact fit --method ''", set(registry.names("exact"))),
        ("erasure train ''", {"ddpm", "sd", "classifier"}),
        ("erasure audit --q16-m", {"--q16-model"}),
    ],
)
def test_bash_completes(script, words, expected):
    done = subprocess.run(["bash", "-c", ASK.format(script=script, words=words)], capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(cli, shell):
    outcome = cli("completion", shell)
    assert outcome.code == 0 and "erasure" in outcome.out and "--negative-guidance" in outcome.out
