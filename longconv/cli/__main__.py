"""`python -m longconv.cli`."""

import sys

from . import main

sys.exit(main())
