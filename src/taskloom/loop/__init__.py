"""The loops: fit, evaluate, predict. Straight code; the order of the hooks is the docstring of each."""
