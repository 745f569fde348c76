"""The workers' processes: what is the same in each kind of worker, and thin adapters, one a kind."""
