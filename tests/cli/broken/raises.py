"""A module of a user that raises while it is imported."""

RATES = {"low": 1}
RATE = RATES["high"]
