import sys
from pathlib import Path

# models/ is no part of the installed package: make the checkout's root importable.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
