"""From a table on disk to sequences on the device: read, check, split, scale, window."""
