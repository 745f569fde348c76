"""``gunicorn -k gunicorn_sticky.UvicornStickyWorker --sticky-by session -w 4 app:app``"""

import os

from fastapi import FastAPI
from nicegui import ui

app = FastAPI()


@ui.page("/")
def index() -> None:
    clicks = 0

    def click() -> None:
        nonlocal clicks
        clicks += 1
        label.text = f"{clicks} clicks on slot {os.environ['GUNICORN_STICKY_SLOT']}"

    label = ui.label("Nothing yet")
    ui.button("Click", on_click=click)


ui.run_with(app)
