"""Stand-in."""
from contextlib import contextmanager
@contextmanager
def draws(rate, seeds):
    yield
def count_draws(model):
    return 0
