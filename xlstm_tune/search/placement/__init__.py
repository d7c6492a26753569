"""How many trials run at a time, and on what."""
