"""`python -m erasure` and `accelerate launch -m erasure`: the same as the `erasure` command."""

import sys

from erasure.cli import main

if __name__ == "__main__":
    sys.exit(main())
