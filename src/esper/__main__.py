"""``python -m esper`` is the ``esper`` command."""

import sys

from esper.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
