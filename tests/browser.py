"""A headless Chromium, spoken to in the DevTools protocol over two pipes."""

import base64
import json
import os
import shutil
import subprocess
import tempfile

import pytest

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"),
    *("--no-first-run", "--disable-background-networking", "--hide-scrollbars"),
    "--remote-debugging-pipe",
)


def find_chromium():
    """Returns the path of a Chromium, or skips the test."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium is installed")


class Browser:
    """One page; a context manager."""

    def __init__(self):
        self.errors = []  # uncaught exceptions, and what the console was told of
        self.requests = []  # addresses that were asked for

    def __enter__(self):
        chromium = find_chromium()
        self._profile = tempfile.mkdtemp(prefix="mnms-chromium-")
        for_it, self._write = os.pipe()
        self._read, from_it = os.pipe()
        # It reads from descriptor 3 and writes to 4.
        shell = f'exec 3<&{for_it} 4>&{from_it}; exec "$0" "$@"'
        command = ("bash", "-c", shell, chromium, *_FLAGS, f"--user-data-dir={self._profile}")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(for_it, from_it), **quiet)
        os.close(for_it)
        os.close(from_it)
        self._count, self._session, self._received = 0, None, b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        os.close(self._write)
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method, **params):
        """Calls a method, and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path, width=1280, height=900, dark=False):
        """Opens a file as a screen of this size, in pixels, shows it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        # Any address but the file's own can't be reached.
        self.send("Network.setBlockedURLs", urls=["http://*", "https://*", "ws://*", "wss://*"])
        self.send("Page.navigate", url=path.absolute().as_uri())
        self.wait_for_load()

    def wait_for_load(self):
        """Waits until a page is there, the one that was opened or one that loads itself."""
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path, whole=True):
        """Writes the page as PNG."""
        image = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(image))

    def _receive(self):
        while b"\0" not in self._received:
            more = os.read(self._read, 1 << 20)
            assert more, "chromium has ended"
            self._received += more
        text, _, self._received = self._received.partition(b"\0")
        message = json.loads(text)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            if "GPU stall" not in params["entry"]["text"]:  # of drawing without a GPU
                self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(params["args"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message
