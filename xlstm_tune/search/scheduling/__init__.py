"""Which trials go on, which are stopped early, and which workers are lost."""
