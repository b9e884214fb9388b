# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over the DevTools protocol."""

import base64
import json
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
  "--headless=new",
  "--remote-debugging-pipe",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-extensions",
  "--disable-sync",
  "--no-first-run",
)


def executable() -> str | None:
  """Returns the path of a browser, or None if none is installed."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """One tab of a headless browser.

  Messages go through pipes, so neither a port nor a library is needed.

  Attributes:
    problems: console messages and exceptions of scripts, as text.
    requests: addresses that the page requested, including its own.
  """

  def __init__(self, width: int = 1280, height: int = 900):
    """Starts the browser with a window of this many pixels."""
    self.problems: list[str] = []
    self.requests: list[str] = []
    self._loaded = False
    self._id, self._buffer = 0, b""
    self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    browser = executable()
    if browser is None:
      raise FileNotFoundError(f"None of {', '.join(NAMES)} is installed.")
    # The browser reads its commands from file 3 and writes to file 4.
    shell = 'exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec "$@"'
    options = [*_OPTIONS, f"--user-data-dir={self._profile.name}"]
    self._process = subprocess.Popen(
      ["sh", "-c", shell, "sh", browser, *options, "about:blank"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    self._session = None
    targets = self.call("Target.getTargets")["targetInfos"]
    (page,) = [t["targetId"] for t in targets if t["type"] == "page"]
    attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")
    self.resize(width, height)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    session, self._session = self._session, None
    try:
      self.call("Browser.close")
    except (EOFError, OSError):
      pass
    self._process.stdin.close()
    self._process.wait(10)
    self._process.stdout.close()
    self._session = session
    self._profile.cleanup()

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Calls a method of the protocol and returns its result.

    Raises:
      RuntimeError: if the browser reports an error.
      TimeoutError: if it sends nothing for a minute.
      EOFError: if it has exited.
    """
    self._id += 1
    message = {"id": self._id, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    self._process.stdin.write(json.dumps(message).encode() + b"\0")
    self._process.stdin.flush()
    while True:
      answer = self._read()
      if answer.get("id") == self._id:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

  def _read(self) -> dict[str, Any]:
    """Reads one message, and records events in the attributes."""
    pipe, deadline = self._process.stdout, time.monotonic() + 60
    while b"\0" not in self._buffer:
      if not select.select([pipe], [], [], deadline - time.monotonic())[0]:
        raise TimeoutError("The browser has not answered for a minute.")
      data = pipe.read1(1 << 20)
      if not data:
        raise EOFError("The browser has exited.")
      self._buffer += data
    line, self._buffer = self._buffer.split(b"\0", 1)
    message = json.loads(line)
    params = message.get("params", {})
    match message.get("method"):
      case "Page.loadEventFired":
        self._loaded = True
      case "Network.requestWillBeSent":
        self.requests.append(params["request"]["url"])
      case "Runtime.exceptionThrown":
        self.problems.append(json.dumps(params["exceptionDetails"]))
      case "Runtime.consoleAPICalled":
        self.problems.append(json.dumps(params["args"]))
      case "Log.entryAdded":
        self.problems.append(params["entry"]["text"])
    return message

  def resize(self, width: int, height: int, mobile: bool = False) -> None:
    """Sets the size of the window in CSS pixels."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=mobile,
    )

  def open(self, page: pathlib.Path, scripts: bool = True) -> None:
    """Opens a file, with or without scripts, and waits until it is loaded."""
    self.problems, self.requests, self._loaded = [], [], False
    self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    self.call("Page.navigate", url=page.resolve().as_uri())
    while not self._loaded:
      self._read()

  def evaluate(self, expression: str) -> Any:
    """Returns the JSON value of an expression; promises are awaited."""
    done = self.call(
      "Runtime.evaluate",
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if "exceptionDetails" in done:
      raise RuntimeError(json.dumps(done["exceptionDetails"]))
    return done["result"].get("value")

  def point(self, x: float, y: float) -> None:
    """Moves the pointer to a position in the window, in CSS pixels."""
    self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

  def click(self, x: float, y: float) -> None:
    """Clicks at a position in the window, in CSS pixels."""
    for event in ("mousePressed", "mouseReleased"):
      self.call(
        "Input.dispatchMouseEvent",
        type=event,
        x=x,
        y=y,
        button="left",
        clickCount=1,
      )

  def screenshot(self, whole: bool = True) -> bytes:
    """Returns a PNG of the window, or of the whole page."""
    done = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
    return base64.b64decode(done["data"])
