"""Makes the harness, and models/ (no part of the installed package), importable; no cache."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
# No test finds what another, or the user, has left in the cache; those about it name a folder.
os.environ["QGRAPH_CACHE"] = "off"
