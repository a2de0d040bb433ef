r"""Look at an image with its labels in the browser, of any size, through Neuroglancer.

Serves the OME-Zarr to this computer alone, under an address that nobody can guess, until the
command is stopped. The browser reads only what it shows. Nothing is copied, nothing is written.

Example
-------
    python view.py results/plate1-A1/plate1-A1.ome.zarr
"""

import argparse
import contextlib
import secrets
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from iaunet import cli, extras, omezarr
from iaunet.errors import OptionError

HOST = "127.0.0.1"
WINDOW_PX = {2: 800, 3: 400}
"""The image is shown first as wide or high as this; in 3D there are several views."""
SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("store", type=Path, help="OME-Zarr that the workflow wrote")
    add("--port", type=int, default=0, help="port to listen at; default: one that is free")
    add("--browser", action=argparse.BooleanOptionalAction, default=True, help="open a browser")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"--port: found {args.port}, needs 0 to 65535")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the store until the command is stopped."""
    args = parse_args(argv)
    neuroglancer = extras.imported("neuroglancer", "view")
    meta, labels = omezarr.read_meta(args.store), omezarr.label_names(args.store)
    neuroglancer.set_server_bind_address(HOST, args.port)
    try:
        viewer = neuroglancer.Viewer()  # under a token of its own
    except OSError as error:
        raise OptionError(f"--port: {args.port} cannot be had ({error.strerror})") from error
    server = neuroglancer.server.global_server
    token = secrets.token_urlsafe(24)
    hosts = {f"{name}:{server.port}" for name in (HOST, "localhost")}
    server.app.add_handlers(".*", [files_of(args.store.resolve(), token, hosts)])
    here = f"http://{HOST}:{server.port}/{token}"
    viewer.set_state(state(meta, labels, here))
    address = viewer.get_viewer_url()
    sys.stdout.write(f"{address}\nThe address holds until this command is stopped (Ctrl-C).\n")
    sys.stdout.flush()
    if args.browser:
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def files_of(folder: Path, token: str, hosts: Set[str]) -> tuple[str, type, dict[str, str]]:
    """Return the rule by which a server gives out the files of a folder, also parts of them.

    Nothing else on the computer can be read, and nothing by a page that came from elsewhere and
    lets its own name point here.
    """
    web = extras.imported("tornado.web", "view")

    class Files(web.StaticFileHandler):
        def prepare(self) -> None:
            if self.request.host not in hosts:
                raise web.HTTPError(403)

        def set_extra_headers(self, path: str) -> None:
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Content-Type-Options", "nosniff")

    return rf"/{token}/(.*)", Files, {"path": str(folder)}


def state(meta: omezarr.Meta, labels: Sequence[str], here: str) -> Mapping[str, object]:
    """Return what the viewer shows first: the image within its limits, and all labels."""
    low, high = meta.attrs.get("limits", (0, 1))
    image = {
        "type": "image",
        "name": "image",
        "source": f"{here}/|zarr3:",
        "shader": SHADER,
        "shaderControls": {"normalized": {"range": [low, high]}},
    }
    shown = [
        {
            "type": "segmentation",
            "name": name,
            "source": f"{here}/labels/{name}/|zarr3:",
            "selectedAlpha": 0.35,
            "visible": name == omezarr.INSTANCES,
        }
        for name in labels
    ]
    lengths = [(1, "")] * len(meta.axes)
    if meta.pixel_um:
        lengths = [(um * 1e-6, "m") for um in meta.pixel_um]
    return {
        "layers": [image, *shown],
        "dimensions": dict(zip(meta.axes, lengths, strict=True)),
        "displayDimensions": list(reversed(meta.axes)),
        "crossSectionScale": max(meta.shape[-2:]) / WINDOW_PX[len(meta.axes)],
        "layout": "xy" if len(meta.axes) == 2 else "4panel-alt",
        "showSlices": False,
        "title": "iaunet-workflow",
    }


if __name__ == "__main__":
    cli.run(main)
