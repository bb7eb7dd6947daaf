"""``python -m binarize``, the same as the ``binarize`` command."""

from __future__ import annotations

import sys

from binarize.cli import main

if __name__ == "__main__":
    sys.exit(main())
