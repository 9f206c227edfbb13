"""`python -m gateway`: the command line where the script `bygate` is not installed."""

import sys

from gateway.cli import main

sys.exit(main())
