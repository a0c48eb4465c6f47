"""The command `kvdctl`."""

import sys

from kvd.ctl.offline.verbs import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
