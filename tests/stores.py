# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A real object store on the loopback, behind connections that can break."""

import contextlib
import importlib.util
import os
import socket
import threading

import pytest

MISSING = [
  name
  for name in ("moto", "s3fs", "boto3", "flask")
  if not importlib.util.find_spec(name)
]
needed = pytest.mark.skipif(
  bool(MISSING), reason=f"pip install soupjax[bucket-tests] ({MISSING})"
)


class Proxy:
  """Passes bytes between clients and a server, and cuts connections."""

  def __init__(self, port: int):
    self._server = port
    self._listener = socket.create_server(("127.0.0.1", 0))
    self.port = self._listener.getsockname()[1]
    # Bytes until connections break, for each of so many of them; which of the
    # two directions counts.
    self._left, self._cuts, self._direction = 0, 0, "up"
    self._lock = threading.Lock()
    self.seen = []  # First lines of requests.
    threading.Thread(target=self._accept, daemon=True).start()

  @contextlib.contextmanager
  def breaking(self, direction: str, after: int, times: int = 10**6):
    """Cuts `times` connections after so many bytes "up" or "down"."""
    self._left, self._cuts, self._direction = after, times, direction
    self._after = after
    try:
      yield
    finally:
      self._cuts = 0

  def _accept(self):
    while True:
      client, _ = self._listener.accept()
      server = socket.create_connection(("127.0.0.1", self._server))
      for pair in ((client, server, "up"), (server, client, "down")):
        threading.Thread(target=self._pump, args=pair, daemon=True).start()

  def _pump(self, source, target, direction):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        if direction == "up" and b" HTTP/1.1\r\n" in data:
          self.seen.append(data.partition(b"\r\n")[0].decode())
        if self._cut(direction, len(data)):
          break
        target.sendall(data)
    for end in (source, target):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
        end.close()

  def _cut(self, direction, size) -> bool:
    with self._lock:
      if not self._cuts or direction != self._direction:
        return False
      self._left -= size
      if self._left >= 0:
        return False
      self._cuts -= 1
      self._left = self._after
      return True


class Store:
  """An S3 server in this process; `proxy` is in front of it."""

  def __init__(self):
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    self._server.start()
    _, port = self._server.get_host_and_port()
    self.proxy = Proxy(port)
    self.env = {
      "AWS_ACCESS_KEY_ID": "key",
      "AWS_SECRET_ACCESS_KEY": "secret",
      "AWS_REGION": "us-east-1",
      "AWS_DEFAULT_REGION": "us-east-1",
      "AWS_EC2_METADATA_DISABLED": "true",
      "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
    }
    self._direct = f"http://127.0.0.1:{port}"

  @property
  def client(self):
    """A client that does not go through the proxy."""
    import boto3

    return boto3.client("s3", endpoint_url=self._direct)

  def names(self, bucket: str) -> list[str]:
    """Returns the keys of all objects in a bucket."""
    listed = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return [entry["Key"] for entry in listed]


@pytest.fixture(scope="session")
def store():
  """The server, one for all tests of a process."""
  if MISSING:
    pytest.skip(f"pip install soupjax[bucket-tests] ({MISSING})")
  before = dict(os.environ)
  made = Store()
  os.environ.update(made.env)
  yield made
  for name in made.env:
    if name in before:
      os.environ[name] = before[name]
    else:
      os.environ.pop(name, None)


@pytest.fixture
def bucket(store, request):
  """The address of a new, empty bucket."""
  name = f"b{abs(hash(request.node.nodeid)):x}"
  store.client.create_bucket(Bucket=name)
  return f"s3://{name}"
