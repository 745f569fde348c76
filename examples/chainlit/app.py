"""``gunicorn -k gunicorn_sticky.UvicornStickyWorker --sticky-by cookie -w 4 app:app``"""

from chainlit.utils import mount_chainlit
from fastapi import FastAPI

app = FastAPI()
mount_chainlit(app, target="chat.py", path="/chat")
