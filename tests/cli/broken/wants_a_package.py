"""A module of a user that needs a package which is not installed."""

import a_package_that_nobody_has  # noqa: F401
