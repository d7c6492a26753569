"""What a search imports sooner or later; loaded once by the process that commands are forked from (commands.py)."""
# ruff: noqa: F401

import optuna
import ray
import ray.tune

import xlstm_tune.search.driver
import xlstm_tune.search.run
import xlstm_tune.search.sampling.searcher
import xlstm_tune.search.trials.trainable
