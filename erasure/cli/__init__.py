"""The command line, a file a verb: it reads its flags, calls the library, and says how its result is shown.

torch and the model libraries are imported by the verb that needs them.
"""

from __future__ import annotations

from erasure.cli.app import main

__all__ = ["main"]
