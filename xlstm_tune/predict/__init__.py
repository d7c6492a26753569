"""The winner of a search as a folder that predicts: weights, JSON, and nothing that could run code.

`champion.py` is the folder, `make.py` makes it of a finished search, `forecasts.py` predicts from a table, `served.py`
is the MLflow model. Needs neither Ray nor Optuna, and MLflow in `served.py` alone.
"""
