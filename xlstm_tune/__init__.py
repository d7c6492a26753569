"""Search the LSTM family (LSTM, sLSTM, mLSTM, xLSTM stacks) over every GPU there is."""

__version__ = "0.1.0"
