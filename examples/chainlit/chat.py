"""What app.py mounts: a chat that remembers what has been said."""

import os

import chainlit


@chainlit.on_message
async def on_message(message: chainlit.Message) -> None:
    said = [*chainlit.user_session.get("said", []), message.content]
    chainlit.user_session.set("said", said)
    await chainlit.Message(f"{', '.join(said)} on slot {os.environ['GUNICORN_STICKY_SLOT']}").send()
