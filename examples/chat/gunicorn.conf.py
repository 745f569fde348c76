import os

bind = f"127.0.0.1:{os.environ.get('PORT') or 8000}"
workers = 4
worker_class = "gunicorn_sticky.GeventStickyWorker"
sticky_by = "session"
