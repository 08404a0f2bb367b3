"""A real browser to test pages in."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest


class Browser:
    """A tab of headless Chromium, spoken to over two pipes in its own protocol (Chrome DevTools)."""

    def __init__(self, program: str, profile: Path) -> None:
        (theirs, to_it), (from_it, ours) = os.pipe(), os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        command = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", program, *flags]
        self._process = subprocess.Popen(command, pass_fds=(theirs, ours), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(ours)
        self._to, self._from = os.fdopen(to_it, "wb"), os.fdopen(from_it, "rb")
        self._number, self._session = 0, {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def _call(self, method: str, **params: object) -> dict:
        self._number += 1
        told = {"id": self._number, "method": method, "params": params, **self._session}
        self._to.write(json.dumps(told).encode() + b"\0")
        self._to.flush()
        while True:
            text = b""
            while not text.endswith(b"\0"):
                text += self._from.read(1) or pytest.fail("the browser is gone")
            answer = json.loads(text[:-1])
            if answer.get("id") == self._number:
                return answer["result"]

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def value(self, expression: str) -> object:
        """Value of a JavaScript expression."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + 60
        while not self.value(f"Boolean({expression})"):  # an element would come as {}
            assert time.monotonic() < end, f"never came true: {expression}\n{self.value('document.body.innerText')}"
            time.sleep(0.05)

    def look(self, width: int, height: int, scheme: str) -> None:
        """Give the tab a size, and a `light` or a `dark` surrounding."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str) -> None:
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def close(self) -> None:
        self._to.close()
        self._process.terminate()
        self._process.wait(timeout=30)
