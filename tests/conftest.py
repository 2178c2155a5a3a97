"""Settings that every test shares."""

from hypothesis import settings

# A busy machine is not a failure, and a suite that passed should pass again.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
