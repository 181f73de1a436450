"""What every test of the repository shares: see tests/parity_plugin.py, tests/leaks.py and tests/stores.py."""

import os
import signal

# Before anything imports torch, and for the processes that tests start: as many threads as tests that run side by side.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell without job control starts background commands with Ctrl-C ignored, and they pass that on to all of theirs.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("parity_plugin", "leaks", "stores", "pytester")
