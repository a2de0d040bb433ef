"""The pages in a browser: they draw, fetch nothing, and do what a reader asks of them."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

pytest.importorskip("tornado")

import browser
import finished
import report
import summarize
from iaunet import synthetic

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
ATTACK = "<img src=x onerror=window.pwned=1>"
LABELS = """Bokeh.documents[0].get_model_by_name('objects XY').selected.indices.map(
    (k) => Bokeh.documents[0].get_model_by_name('objects XY').data.row[k] + 1).sort((a, b) => a - b)
"""
"""The chosen objects of a drawn image, whose labels follow the rows of their table."""


def write(folder, image, labels, core, **more):
    """Write the page of an image; return it and the labels."""
    options = finished.write(folder, image, labels, core=core, **more)
    report.main([str(text) for item in options.items() for text in item])
    return options["--output"], labels


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    image, labels = synthetic.draw_nuclei((220, 300), np.random.default_rng(4), diameter_px=20)
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint32)
    folder = tmp_path_factory.mktemp("flat")
    return write(folder, image, labels, (128, 128), pixel_um=(0.5, 0.5), channel=ATTACK)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    rng = np.random.default_rng(4)
    image, labels = synthetic.draw_nuclei((24, 90, 110), rng, diameter_px=16, spacing=(2, 1, 1))
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint32)
    folder = tmp_path_factory.mktemp("volume")
    return write(folder, image, labels, (24, 64, 64), pixel_um=(0.6, 0.3, 0.3))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    image = np.random.default_rng(0).poisson(30, (90, 120)).astype(np.uint8)
    labels = np.zeros(image.shape, np.uint32)
    return write(tmp_path_factory.mktemp("empty"), image, labels, (128, 128))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the page of a run: 9 images of two groups, one of which failed."""
    folder = tmp_path_factory.mktemp("run")
    lines = ["image,path,group"]
    for k in range(9):
        lines.append(f"a{k},a{k}.tif,{ATTACK if k % 2 else 'control'}")
        home = folder / "results" / f"a{k}"
        home.mkdir(parents=True)
        if k != 4:
            found = {"n_objects": 10 * k, "seconds": 9 - k, "shape": [8, 9], "warnings": []}
            (home / "metrics.json").write_text(json.dumps(found))
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    words = ["--table", f"{folder / 'images.csv'}", "--results", f"{folder / 'results'}"]
    page = folder / "results/summary.html"
    summarize.main([*words, "--output-csv", f"{folder / 'a.csv'}", "--output-html", f"{page}"])
    return page, None


def browsed(page, body, folder, **more):
    """Open a page and hand it to a coroutine; return what that returns."""

    async def opened():
        async with browser.chromium(folder, **more) as tab:
            await tab.open(page)
            found = await body(tab)
            assert tab.errors == []
            assert tab.requests == []
            return found

    return asyncio.run(opened())


async def box_of(tab, element):
    """Return left, top, width and height of an element, scrolled into the window."""
    code = f"document.getElementById('{element}')"
    await tab.look(f"{code}.scrollIntoView({{block: 'center'}})")
    await asyncio.sleep(0.2)
    box = await tab.look(f"(({{x, y, width, height}}) => [x, y, width, height])"
                         f"({code}.getBoundingClientRect())")  # fmt: skip
    return np.array(box)


async def at(tab, y, x, shape):
    """Return where in the window a pixel of a 2D image is shown."""
    left, top, width, height = await box_of(tab, "plane-XY")
    return left + (x + 0.5) / shape[1] * width, top + (y + 0.5) / shape[0] * height


@pytest.mark.parametrize("name", ["flat", "volume", "empty", "run"])
@pytest.mark.parametrize("width", [1280, 420])
def test_a_page_is_drawn_without_an_error_or_a_request(name, width, request, tmp_path):
    page, _ = request.getfixturevalue(name)

    async def body(tab):
        undrawn = "document.getElementById('undrawn')?.textContent"
        assert not await tab.look(undrawn)
        assert await tab.look("window.pwned === undefined")
        assert await tab.look("document.body.scrollWidth <= window.innerWidth")

    browsed(page, body, tmp_path, width=width)


def test_outlines_are_switched_off(flat, tmp_path):
    page, _ = flat

    async def coloured(tab):
        left, top, width, height = (await box_of(tab, "plane-XY")).astype(int)
        shot = await tab.send("Page.captureScreenshot")
        picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        inside = np.asarray(picture)[top : top + height, left : left + width - 40].astype(int)
        return int((np.ptp(inside, axis=2) > 40).sum())

    async def body(tab):
        before = await coloured(tab)
        await tab.look("document.getElementById('found').click()")
        await asyncio.sleep(0.3)
        after = await coloured(tab)
        assert before > 1000
        assert after < before / 50

    browsed(page, body, tmp_path)


def test_an_object_under_the_mouse_shows_its_row(flat, tmp_path):
    page, labels = flat

    async def body(tab):
        for label in (3, 11):
            where = np.argwhere(labels == label)
            y, x = where[np.abs(where - where.mean(axis=0)).sum(axis=1).argmin()]
            await tab.point(*await at(tab, y, x, labels.shape))
            await tab.until(f"document.getElementById('chosen').textContent === 'Object {label}'")
            row = await tab.look("document.getElementById('row').innerText")
            assert f"area, px\t{len(where)}\n" in row

    browsed(page, body, tmp_path)


def test_an_object_is_chosen_with_the_keyboard(flat, tmp_path):
    page, _ = flat

    async def body(tab):
        await tab.look("document.getElementById('object').focus()")
        await tab.send("Input.insertText", text="7")
        for kind in ("keyDown", "keyUp"):
            await tab.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter",
                           windowsVirtualKeyCode=13, text="\r" * (kind == "keyDown"))  # fmt: skip
        await tab.until("document.getElementById('chosen').textContent === 'Object 7'")
        assert await tab.look(LABELS) == [7]
        await tab.look("document.getElementById('next').click()")
        assert await tab.look(LABELS) == [8]
        await tab.look("document.getElementById('previous').click()")
        await tab.look("document.getElementById('previous').click()")
        assert await tab.look(LABELS) == [6]
        assert await tab.look("document.getElementById('said').textContent") == "Object 6"

    browsed(page, body, tmp_path)


def test_a_range_of_a_histogram_chooses_the_objects_in_it(flat, tmp_path):
    page, labels = flat
    areas = np.bincount(labels.ravel())[1:]

    async def body(tab):
        left, top, width, height = await box_of(tab, "histogram-area_px")
        middle = top + 0.4 * height
        await tab.drag((left + 0.5 * width, middle), (left + 0.97 * width, middle))
        chosen = await tab.until(f"({LABELS}).length && {LABELS}")
        inside = areas[np.array(chosen) - 1]
        assert 0 < len(chosen) < labels.max()
        all_of = (areas >= inside.min()) & (areas <= inside.max())
        assert chosen == (np.flatnonzero(all_of) + 1).tolist()
        counted = "Bokeh.documents[0].get_model_by_name('picked area_px').data.top"
        assert sum(await tab.look(counted)) == len(chosen)
        title = await tab.look("document.getElementById('chosen').textContent")
        assert title.startswith(f"{len(chosen)} object")
        await tab.look("document.getElementById('clear').click()")
        assert await tab.look(LABELS) == []

    browsed(page, body, tmp_path)


def test_a_box_in_the_picture_fills_the_histograms(flat, tmp_path):
    page, labels = flat

    async def body(tab):
        await tab.look("""(() => {
            const bar = Bokeh.documents[0].get_model_by_name('plane XY').toolbar;
            bar.active_drag = bar.tools.find((one) => one.type === 'BoxSelectTool');
            for (const one of bar.tools) if (one.type === 'BoxSelectTool') one.active = true;
        })()""")
        start = await at(tab, 0, 0, labels.shape)
        end = await at(tab, 110, 299, labels.shape)
        await tab.drag((start[0] + 3, start[1] + 3), (end[0] - 60, end[1]))
        chosen = await tab.until(f"({LABELS}).length && {LABELS}")
        whole = [k for k in chosen if np.argwhere(labels == k).max(axis=0)[0] <= 111]
        assert len(whole) == len(chosen) < labels.max()
        counted = "Bokeh.documents[0].get_model_by_name('picked confidence').data.top"
        assert sum(await tab.look(counted)) == len(chosen)

    browsed(page, body, tmp_path)


def test_objects_are_coloured_by_a_column_of_their_table(flat, tmp_path):
    page, labels = flat
    heights = ndimage.center_of_mass(labels > 0, labels, range(1, labels.max() + 1))
    heights = np.array(heights)[:, 0]

    async def body(tab):
        await tab.look("""(() => {
            const one = document.getElementById('colour');
            one.value = 'y_px';
            one.dispatchEvent(new Event('change'));
        })()""")
        source = "Bokeh.documents[0].get_model_by_name('objects XY').data"
        rows, values = await tab.look(f"[{source}.row, {source}.value]")
        np.testing.assert_allclose(values, heights[rows], rtol=1e-3)
        assert await tab.look("document.getElementById('unit').innerText") == "y, px"
        edges = await tab.look("(({low, high}) => [low, high])"
                               "(Bokeh.documents[0].get_model_by_name('bar'))")  # fmt: skip
        assert heights.min() - 0.01 <= edges[0] < edges[1] <= heights.max() + 0.01
        counted = "Bokeh.documents[0].get_model_by_name('all followed').data.top"
        assert sum(await tab.look(counted)) == labels.max()

    browsed(page, body, tmp_path)


def test_the_sections_of_a_volume_follow_slider_and_choice(volume, tmp_path):
    page, labels = volume

    async def body(tab):
        shown = "Bokeh.documents[0].get_model_by_name('objects XY').data.row.map((k) => k + 1)"
        for at_z in (3, 20):
            await tab.look(f"""(() => {{
                const slider = document.getElementById('slice-XY');
                slider.value = {at_z};
                slider.dispatchEvent(new Event('input'));
            }})()""")
            await tab.until(f"document.getElementById('at-XY').textContent === 'z = {at_z}'")
            assert sorted(await tab.look(shown)) == np.unique(labels[at_z])[1:].tolist()
        label = int(labels[5].max())
        await tab.look(f"""(() => {{
            const one = document.getElementById('object');
            one.value = {label};
            one.dispatchEvent(new Event('change'));
        }})()""")
        z, y, _ = np.argwhere(labels == label).mean(axis=0)
        for plane, middle in (("XY", z), ("XZ", y)):
            text = await tab.look(f"document.getElementById('at-{plane}').textContent")
            assert abs(float(text.split("=")[1]) - middle) <= 3
        assert await tab.look(LABELS) == [label]

    browsed(page, body, tmp_path)


def test_images_are_filtered_sorted_and_found_among_the_dots(run, tmp_path):
    page, _ = run
    rows = """[...document.getElementById('runs').tBodies[0].rows]
        .filter((row) => !row.hidden).map((row) => row.dataset.image)"""

    async def give(tab, element, value):
        await tab.look(f"""(() => {{
            const one = document.getElementById('{element}');
            one.value = {json.dumps(value)};
            one.dispatchEvent(new Event('input'));
        }})()""")

    async def body(tab):
        assert (await tab.look(rows))[0] == "a4"
        await give(tab, "status", "failed")
        assert await tab.look(rows) == ["a4"]
        await give(tab, "status", "")
        await give(tab, "group", f"={ATTACK}")
        assert sorted(await tab.look(rows)) == ["a1", "a3", "a5", "a7"]
        await give(tab, "group", "")
        await give(tab, "text", "a3")
        assert await tab.look(rows) == ["a3"]
        await give(tab, "text", "")
        head = """[...document.querySelectorAll('#runs th button')]
            .find((one) => one.textContent === 'objects')"""
        for order in (sorted, lambda names: sorted(names, reverse=True)):
            await tab.look(f"({head}).click()")
            known = [name for name in await tab.look(rows) if name != "a4"]
            assert known == order(known)
            assert (await tab.look(rows))[-1] == "a4"
        left, top, width, height = await box_of(tab, "groups")
        corner = (left + 0.6 * width, top + 8)
        await tab.drag(corner, (left + 0.99 * width, top + 0.55 * height))
        found = await tab.until(f"({rows}).length < 9 && {rows}")
        assert found
        assert min(int(name[1]) for name in found) > 3
        await tab.look("document.getElementById('all').click()")
        assert len(await tab.look(rows)) == 9

    browsed(page, body, tmp_path)
