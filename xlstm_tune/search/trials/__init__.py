"""A trial as its worker process runs it."""
