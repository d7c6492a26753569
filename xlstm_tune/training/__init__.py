"""Training: a generator of epochs that knows nothing of Ray."""
