"""All that the soak asks for: the applications of the fault harness and of the cluster."""

import busy
import socketio
from cluster_app import sio

app = socketio.WSGIApp(sio, busy.app)
