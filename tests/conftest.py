"""Put the repository root on the path, so that tests import the same flat files a user runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
