"""A static page, its network and its library on a server of this machine, in place of Hub and CDN."""

import contextlib
import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

LIBRARY = "@huggingface/transformers@4.3.2"
DIST = "npm/@huggingface/transformers/dist/transformers.min.js"
# What index.html takes the library from, in place of the CDN: that names its WebAssembly files on the CDN, too.
FROM_HERE = f"""
export * from "/{DIST}";
import {{ env }} from "/{DIST}";
const file = location.origin + "/npm/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify";
env.backends.onnx.wasm.wasmPaths = {{ mjs: file + ".mjs", wasm: file + ".wasm" }};
env.remoteHost = location.origin + "/";
"""


def install_library(folder):
    """`LIBRARY` from npm's registry; returns the folder of the packages."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: apt-get install nodejs npm)")
    (folder / "package.json").write_text("{}")
    # Its native libraries are in the packages; the scripts would only fetch GPU libraries.
    command = ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", LIBRARY]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm could not install {LIBRARY}: {done.stderr[-300:]}")
    return folder / "node_modules"


def lay_out(site, page, network, packages):
    """A folder that a server shows as page, Hub and CDN at once."""
    shutil.copytree(page, site)
    (site / "npm").symlink_to(packages)
    (site / "ann" / "student" / "resolve").mkdir(parents=True)
    (site / "ann" / "student" / "resolve" / "main").symlink_to(network)
    (site / "library.mjs").write_text(FROM_HERE)
    index = site / "index.html"
    index.write_text(index.read_text().replace(f"https://cdn.jsdelivr.net/npm/{LIBRARY}", "/library.mjs"))
    return site


def point_at(site, url):
    """Have the page load its network from a server."""
    file = site / "models.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hub": url}))


@contextlib.contextmanager
def serve(folder):
    """The URL of a server of a folder's files, which lists what it is asked for; (url, paths)."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    Handler.extensions_map = Handler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
