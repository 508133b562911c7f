"""`python -m prefkit` is `prefkit`."""

import sys

from prefkit.cli import main

sys.exit(main())
