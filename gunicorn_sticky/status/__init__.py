"""How a server is: counters and states as a snapshot, shown in a terminal, as a page and as metrics."""
