"""`python -m taskloom` is the `task` command."""

from __future__ import annotations

from taskloom.cli import main

if __name__ == "__main__":
    main()
