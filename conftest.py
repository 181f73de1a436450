"""What every test of the repository shares: see tests/parity_plugin.py, tests/leaks.py and tests/stores.py."""

import os

# Before anything imports torch, and for the processes that tests start: as many threads as tests that run side by side.
os.environ["OMP_NUM_THREADS"] = "1"

pytest_plugins = ("parity_plugin", "leaks", "stores", "pytester")
