"""The master's process: Gunicorn's arbiter, with slots, and what it supervises."""
