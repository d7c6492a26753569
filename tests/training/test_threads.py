"""Kernels get torch's threads while a model trains that has little else to compute."""

import pytest
import torch

from xlstm_tune.kernels.tiles import kernel_threads
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model
from xlstm_tune.training.threads import threads_asked_for, threads_for


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(backend: str = "auto", **options):
    config = ModelConfig.parse({"hidden_size": 32, "layers": 1, **options}, "model")
    return build_model(config, Shape(3, 20, 5, 1, (0,)), backend)


@pytest.mark.parametrize("family", ["lstm", "slstm", "mlstm"])
def test_kernels_get_them_for_the_time_of_the_training(family):
    with pytest.raises(RuntimeError, match="in between"), threads_for(model(family=family)):
        assert (torch.get_num_threads(), kernel_threads()) == (1, 2)
        raise RuntimeError("in between")
    assert (torch.get_num_threads(), kernel_threads()) == (2, None)


@pytest.mark.parametrize(
    "other",
    [
        {"family": "lstm_torch"},
        {"family": "mlstm", "backend": "reference"},
        {"family": "mlstm", "hidden_size": 256},
        {"family": "lstm", "projection": 16},
    ],
    ids=str,
)
def test_torch_keeps_them_where_it_computes(other):
    with threads_for(model(**other)):
        assert (torch.get_num_threads(), kernel_threads()) == (2, None)


def test_one_thread_stays_one():
    torch.set_num_threads(1)
    with threads_for(model(family="mlstm")):
        assert (torch.get_num_threads(), kernel_threads()) == (1, None)


def test_double_precision_stays_with_torch():
    with threads_for(model(family="mlstm").double()):
        assert (torch.get_num_threads(), kernel_threads()) == (2, None)


@pytest.mark.parametrize(
    ("said", "threads"), [(None, 1), ("", 1), ("3", 3), (" 4,2", 4), ("0", 1), ("-1", 1), ("auto", 1), ("2.5", 1)]
)
def test_openmp_may_say_more_than_a_number(said, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_asked_for() == threads
