"""Pages of NiceGUI, as far as they are clients of it: python nicegui_pages.py URL PAGES

Each is opened, connects as its script would, and its button is clicked three times. Prints a line of JSON: what went
wrong, the ids of the pages, and what their labels have shown last.
"""

import ast
import asyncio
import json
import re
import sys
import uuid
from typing import Any
from urllib.parse import urlencode

import aiohttp
import socketio

CLICKS = 3
TIMEOUT = 30
#: Pages at once.
CROWD = 10

url, pages = sys.argv[1], int(sys.argv[2])
crowd = asyncio.Semaphore(CROWD)


async def run(number: int) -> tuple[str, str]:
    transport = "polling" if number % 2 else "websocket"
    # By default it keeps no cookies of servers that have an address in the place of a name.
    async with crowd, aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(url) as response:
            page = await response.text()
        elements = json.loads(re.findall(r"String\.raw`(.+?)`", page)[0])
        query = ast.literal_eval(re.findall(r"query: (\{.+?\})", page)[0])
        (button,) = (element_id for element_id, element in elements.items() if element["tag"] == "q-btn")
        ids = {"document_id": uuid.uuid4(), "tab_id": uuid.uuid4(), "old_tab_id": "null", "implicit_handshake": "true"}

        updates: asyncio.Queue[Any] = asyncio.Queue()
        client = socketio.AsyncClient(
            reconnection=False, request_timeout=TIMEOUT, handle_sigint=False, http_session=session
        )
        client.on("update", updates.put)
        await client.connect(
            f"{url}?{urlencode(query | ids)}",
            socketio_path="/_nicegui_ws/socket.io",
            transports=[transport],
            wait_timeout=TIMEOUT,
        )
        text = ""
        for clicks in range(1, CLICKS + 1):
            (event,) = elements[button]["events"]
            click = {"id": int(button), "client_id": query["client_id"], "listener_id": event["listener_id"]}
            await client.emit("event", {**click, "args": []})
            while not text.startswith(f"{clicks} clicks"):
                update = await asyncio.wait_for(updates.get(), TIMEOUT)
                text = next((element["text"] for element in update.values() if "text" in (element or ())), text)
        await client.disconnect()
        return query["client_id"], text


async def main() -> None:
    done = await asyncio.gather(*map(run, range(pages)), return_exceptions=True)
    failed = [repr(found) for found in done if isinstance(found, BaseException)]
    ids, labels = zip(*(found for found in done if not isinstance(found, BaseException)), strict=True)
    print(json.dumps({"failed": failed, "ids": ids, "labels": labels}))


asyncio.run(main())
