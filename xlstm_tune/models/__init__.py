"""The model family: LSTM, sLSTM, mLSTM and mixed xLSTM stacks, and the baselines they must beat."""
