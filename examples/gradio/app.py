"""``gunicorn -k gunicorn_sticky.UvicornStickyWorker --sticky-by cookie -w 4 app:app``"""

import os

import gradio
from fastapi import FastAPI

with gradio.Blocks() as demo:
    said = gradio.State([])
    text = gradio.Textbox()
    shown = gradio.Textbox()

    @text.submit(inputs=[text, said], outputs=[shown, said], api_name="say")
    def say(text: str, said: list[str]) -> tuple[str, list[str]]:
        said = [*said, text]
        return f"{', '.join(said)} on slot {os.environ['GUNICORN_STICKY_SLOT']}", said


app = gradio.mount_gradio_app(FastAPI(), demo, path="/")
