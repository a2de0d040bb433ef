"""The viewer shows image and labels, to this computer alone."""

import asyncio
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import finished
from runs import REPOSITORY

pytest.importorskip("neuroglancer")
from tornado import websocket


@pytest.fixture
def viewer(tmp_path):
    """Serve an image with one object left and above of the middle; return address and store."""
    labels = np.zeros((120, 160), np.uint32)
    labels[40:60, 50:80] = 1
    options = finished.write(tmp_path, (labels * 200).astype(np.uint8), labels, core=(120, 160))
    store = options["--store"]
    command = [sys.executable, REPOSITORY / "workflow/scripts/view.py", store, "--no-browser"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process.stdout.readline().strip(), store
        process.kill()


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read()


def data_address(address):
    """Return where the files of the image are, from the state that the page is sent."""
    stream = urllib.request.urlopen(re.sub("/v/([^/]+)/", r"/events/\1?c=1&gc=&gs=", address))
    found = (re.search(r"http://[^|]*/(?=\|zarr3:)", line.decode()) for line in stream)
    return next(match[0] for match in found if match)


def refused(address, code, **headers):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(address, **headers)
    assert error.value.code == code


def test_files_are_served_to_those_who_know_the_address(viewer):
    address, store = viewer
    assert address.startswith("http://127.0.0.1:")
    here = data_address(address)
    stored = (store / "labels/instances/zarr.json").read_bytes()
    assert get(f"{here}labels/instances/zarr.json") == stored
    assert get(f"{here}labels/instances/zarr.json", Range="bytes=5-9") == stored[5:10]
    host = re.match("http://[^/]+", here)[0]
    refused(f"{host}/zarr.json", 404)
    refused(f"{host}/{'x' * 32}/zarr.json", 404)
    refused(f"{here}..%2f..%2f{store.name}/zarr.json", 403)
    refused(f"{here}%2fetc/passwd", 403)
    refused(f"{here}zarr.json", 403, Host="example.org")


def test_a_store_that_is_none_is_one_line(tmp_path):
    command = [sys.executable, REPOSITORY / "workflow/scripts/view.py", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no OME-Zarr store" in done.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_object_is_seen_where_it_is(viewer, tmp_path):
    address, _ = viewer
    picture = asyncio.run(seen(address, tmp_path))
    colour = picture.max(2).astype(int) - picture.min(2) > 40
    rows, columns = np.nonzero(colour[60:, 100:500])  # without the bar above
    assert len(rows) > 5_000
    # The object is 30 px wide, 20 px high.
    assert 1.2 < np.ptp(columns) / np.ptp(rows) < 1.8


async def seen(address, folder):
    """Return the page as Chromium shows it, once there is colour in it."""
    options = ["--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
    options += ["--enable-unsafe-swiftshader", "--window-size=600,500", "--remote-allow-origins=*"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", address]
    with subprocess.Popen(["chromium", *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"ws://([^/]+)/", line):
                    break
            tabs = json.loads(get(f"http://{found[1]}/json"))
            tab = next(one for one in tabs if one["type"] == "page")
            page = await websocket.websocket_connect(
                tab["webSocketDebuggerUrl"], max_message_size=1 << 28
            )
            end = time.monotonic() + 90
            while True:
                await asyncio.sleep(1)
                await page.write_message('{"id": 1, "method": "Page.captureScreenshot"}')
                answer = json.loads(await page.read_message())
                image = Image.open(io.BytesIO(base64.b64decode(answer["result"]["data"])))
                picture = np.asarray(image.convert("RGB"))
                there = picture[60:, 100:500]
                n = int((there.max(2).astype(int) - there.min(2) > 40).sum())
                if n > 5_000 or time.monotonic() > end:
                    return picture
        finally:
            process.kill()
