"""Open a page in headless Chromium: what it says, what it fetches, what it looks like."""

import asyncio
import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request

from tornado import websocket

CHROMIUM = shutil.which("chromium")
OPTIONS = ["--headless=new", "--no-sandbox", "--remote-allow-origins=*", "--hide-scrollbars"]
OPTIONS += ["--remote-debugging-port=0", "--disable-gpu", "--force-device-scale-factor=1"]


class Page:
    """A tab of Chromium, spoken to over its DevTools protocol.

    Attributes
    ----------
    errors : what the console was told as an error, and exceptions that nobody caught.
    requests : addresses that were fetched, the page itself and data within it left out.
    """

    def __init__(self, socket):
        self.socket, self.count = socket, 0
        self.errors, self.requests = [], []

    async def send(self, method, **params):
        """Call a method; note what happens until its answer comes."""
        self.count += 1
        await self.socket.write_message(
            json.dumps({"id": self.count, "method": method, "params": params})
        )
        while True:
            said = json.loads(await asyncio.wait_for(self.socket.read_message(), 60))
            if said.get("id") == self.count:
                assert "error" not in said, said
                return said["result"]
            self.note(said.get("method"), said.get("params"))

    def note(self, method, params):
        if method == "Runtime.exceptionThrown":
            found = params["exceptionDetails"]
            self.errors.append(found.get("exception", {}).get("description") or found["text"])
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        if method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith(("file:", "data:", "blob:")):
                self.requests.append(address)

    async def look(self, code):
        """Return the value of an expression in the page."""
        result = await self.send(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, code, seconds=30):
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + seconds
        while not (found := await self.look(code)):
            assert time.monotonic() < end, f"{code}: {found}; {self.errors}"
            await asyncio.sleep(0.05)
        return found

    async def resize(self, width, height=900):
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def open(self, path):
        """Open a file; return the seconds until it says that it is drawn."""
        await self.send("Page.navigate", url=path.resolve().as_uri())
        began = time.monotonic()
        await self.until("document.readyState === 'complete' && document.body.dataset.drawn")
        return time.monotonic() - began

    async def drag(self, start, end):
        """Drag the mouse between two points of the window, (x, y)."""
        points = [start, *((start[k] + (end[k] - start[k]) * f for k in (0, 1)) for f in (0.5, 1))]
        points = [tuple(point) for point in points]
        for kind, (x, y), buttons in (
            ("mouseMoved", points[0], 0),
            ("mousePressed", points[0], 1),
            ("mouseMoved", points[1], 1),
            ("mouseMoved", points[2], 1),
            ("mouseReleased", points[2], 0),
        ):
            button = "none" if kind == "mouseMoved" and not buttons else "left"
            await self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button=button,
                buttons=buttons,
                clickCount=int(kind != "mouseMoved"),
            )
            await asyncio.sleep(0.05)

    async def point(self, x, y):
        """Move the mouse to a point of the window."""
        for left in (x - 1, x):
            await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=left, y=y)
            await asyncio.sleep(0.05)

    async def picture(self, path, whole=True):
        """Write what the page looks like as PNG."""
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def printed(self, path):
        """Write the page as PDF."""
        shot = await self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def chromium(folder, width=1280, height=900):
    """Yield an empty page of a Chromium of its own, whose profile lies in `folder`."""
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            address = next(
                m[1] for line in process.stderr if (m := re.search(r"ws://([^/]+)/", line))
            )
            tabs = json.load(urllib.request.urlopen(f"http://{address}/json"))
            tab = next(one for one in tabs if one["type"] == "page")
            socket = await websocket.websocket_connect(
                tab["webSocketDebuggerUrl"], max_message_size=1 << 28
            )
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.send(f"{domain}.enable")
            await page.resize(width, height)
            yield page
        finally:
            process.kill()
