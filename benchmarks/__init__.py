"""Measures taskloom beside a bare PyTorch loop, always in the same run; `python -m benchmarks` runs them all."""
