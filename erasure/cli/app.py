"""The command line. Nothing here imports torch before a verb runs, and what a verb needs is imported with it.

stdout is the result (one JSON object with `--json`), stderr everything else. A mistake is one line and exit 1; a
command that cannot be read at all is exit 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from erasure.cli.output import paint
from erasure.cli.verbs import VERBS, UsageError
from erasure.core.errors import ErasureError, OutputError, suggestion
from erasure.core.option_names import options_as_flags

if TYPE_CHECKING:
    from erasure.core.logging import Level

CLOSED_PIPE = 141  # 128 + SIGPIPE, as shells report a program that wrote to a closed pipe
OUT_OF_MEMORY = (
    "the GPU's memory is full: try --memory low, a smaller --batch-size or a larger --accumulate, or smaller "
    "--saliency-batch-size, --sample-batch-size and --training-image-batch-size"
)
HELP = """usage: erasure VERB [options]

Erase a class, an object, a style or a concept from a model, ship the cleaned weights, prove what was done.

{verbs}

Run `erasure VERB --help` for the options of a verb. Two commands to begin with:
  erasure demo --out demo
  erasure list methods
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with options_as_flags():
            try:
                return _command(arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has enough of it, such as `head`
        _discard_output()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        _complain("interrupted; the same command continues where it can")
        return 130


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(verbs="\n".join(f"  {name:12}{text}" for name, text in VERBS.items())), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("erasure"))
        return 0
    if arguments[0] not in VERBS:
        _complain(f"unknown verb {arguments[0]!r}{suggestion(arguments[0], VERBS)}")
        return 2
    from erasure.core.logging import shown

    with shown(_level(arguments), paint("warning: ", "yellow", sys.stderr)):
        return _checked(arguments[0], arguments[1:])


def _level(arguments: Sequence[str]) -> Level:
    """How much to tell; read before the verb reads its options, so that it also holds for errors in them."""
    return "verbose" if "--verbose" in arguments else "quiet" if "--quiet" in arguments else "normal"


def _checked(verb: str, argv: Sequence[str]) -> int:
    """Run a verb; an error that the user can mend becomes one line."""
    try:
        return _run(verb, argv)
    except ErasureError as error:
        if "--verbose" in argv:
            import traceback

            traceback.print_exc()
        _complain(str(error))
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _complain(OUT_OF_MEMORY)
        return 1


def _run(verb: str, argv: Sequence[str]) -> int:
    import json
    import time

    from erasure.core.distributed import is_main
    from erasure.core.logging import log_debug

    if "--verbose" not in argv:
        _silence_libraries()
    start = time.monotonic()
    command = import_module(f"erasure.cli.{verb}")
    parser = command.parser(argv)
    values = parser.read(argv)
    try:
        result, text_of = command.run(values)
    except UsageError as error:
        parser.error(str(error))
    log_debug(f"{verb} took {time.monotonic() - start:.1f} s")
    document = result.to_dict() if hasattr(result, "to_dict") else result
    if is_main():
        _show(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) if values.json else text_of(document))
    return int(command.code(document)) if hasattr(command, "code") else 0


def _complain(text: str) -> None:
    print(f"{paint('erasure:', 'red', sys.stderr)} {text}", file=sys.stderr)


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise OutputError(f"the result could not be printed: {error.strerror}") from error


def _discard_output() -> None:
    """Send what is still buffered for a stream that takes nothing to nowhere: Python writes it when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _silence_libraries() -> None:
    """Keep the libraries' advice and bars off stderr, which is for what concerns the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
