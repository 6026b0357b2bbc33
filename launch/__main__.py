"""`python -m launch` is `skipjoin`."""

import sys

from launch.cli import main

if __name__ == "__main__":  # a simulation's own processes import this file
    sys.exit(main())
