"""From the bytes of a request to the slot or the worker that it belongs to. Pure, and imports nothing of ours."""
