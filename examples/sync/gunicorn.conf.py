"""Holds each connection back until its client's state is there: ``gunicorn app:app``."""

workers = 4
worker_class = "gunicorn_sticky.GeventStickyWorker"
sticky_sync = True
sticky_sync_event = "mySyncEventCall"


def sticky_connection(worker, connection):
    from app import load, states  # the worker's own copy, which is not there yet when this file is read

    if connection.key not in states:
        states[connection.key] = load(connection.key)
        worker.log.info("Loaded the state of %s on slot %d", connection.key, connection.slot)
    # The first request waits for this, up to sticky_sync_timeout seconds.
    connection.emit("mySyncEventCall")
