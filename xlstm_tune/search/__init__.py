"""The search: Ray Tune places trials, Optuna proposes them, this package keeps the record."""
