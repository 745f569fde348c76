"""Messages between workers, and from other programs, in shared memory."""
