"""`python -m control` is `esplanade`."""

import sys

from control.cli import main

sys.exit(main())
