"""`python -m launch` is `skipjoin`."""

import sys

from launch.cli import main

sys.exit(main())
