"""The search: Ray Tune places trials, Optuna proposes them, this package keeps the record.

The command goes `__main__` → `plan` → `run`. What it calls lies where it belongs: `sampling` (what comes next),
`placement` (on what), `trials` (in the worker), `scheduling` (who goes on), `persistence` (what outlives everything),
`finals` (what comes after the trials), `remote` (on another machine).
"""
