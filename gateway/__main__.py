"""`python -m gateway` is `bygate`."""

import sys

from gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
