"""A search on the head of a Ray cluster, begun and watched from another machine: `--cluster FILE`.

The head is reached as Ray's launcher reaches it, over SSH (`reach.py`), and runs `head.py`, which comes with the code
that `ray up` shipped. The driver there belongs to nobody's connection: it goes on when this one ends.
"""
