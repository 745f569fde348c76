"""Browsers of a Gradio application, with Gradio's own client: python gradio_browsers.py URL BROWSERS

Each says three words, and looks whether the application remembers all of them. Prints a line of JSON: what went wrong,
and what each has been answered last.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from gradio_client import Client

WORDS = ("one", "two", "three")
#: Browsers at once.
CROWD = 10

url, browsers = sys.argv[1], int(sys.argv[2])


def run(number: int) -> tuple[str | None, str]:
    try:
        client = Client(url, verbose=False, analytics_enabled=False)
        answers = [client.predict(word, api_name="/say") for word in WORDS]
        slots = {answer.rpartition(" on slot ")[2] for answer in answers}
        if len(slots) > 1 or not answers[-1].startswith(", ".join(WORDS)):
            return str(answers), answers[-1]
        return None, answers[-1]
    except Exception as error:
        return repr(error), ""


with ThreadPoolExecutor(CROWD) as pool:
    done = list(pool.map(run, range(browsers)))
print(json.dumps({"failed": [failed for failed, _ in done if failed], "answers": [answer for _, answer in done]}))
