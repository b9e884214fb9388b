# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Local object stores: S3 behind a proxy that cuts connections, and gs://."""

import contextlib
import functools
from http import server as http
import importlib.util
import json
import logging
import os
import socket
import threading
from urllib import parse

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
  """Passes bytes between clients and a server, and can cut connections."""

  def __init__(self, port: int):
    self._server = port
    self._listener = socket.create_server(("127.0.0.1", 0))
    self.port = self._listener.getsockname()[1]
    # Bytes before the next cut, remaining cuts, and the direction that counts.
    self._left, self._cuts, self._direction = 0, 0, "up"
    self._lock = threading.Lock()
    self.seen = []  # First lines of requests.
    threading.Thread(target=self._accept, daemon=True).start()

  @contextlib.contextmanager
  def breaking(self, direction: str, after: int, times: int = 10**6):
    """Cuts connections while the block runs.

    Args:
      direction: "up" (from clients) or "down".
      after: bytes in this direction before each cut.
      times: number of cuts.
    """
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
  """An S3 server in this process, behind a proxy.

  Attributes:
    proxy: the `Proxy` in front of the server.
    env: environment variables that make clients use the proxy.
  """

  def __init__(self):
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
  """An S3 server that all tests of a process share."""
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


# --- gs:// --------------------------------------------------------------------


class GoogleStore:
  """A gs:// server in this process.

  It is `gcp-storage-emulator` with three additions: conditions on generations,
  which locks need; generations of the objects that are read; and uploads of
  binary data.

  Attributes:
    create_bucket: function that creates a bucket by name.
    env: environment variables that make clients use the server.
  """

  def __init__(self):
    from gcp_storage_emulator import server, storage
    from gcp_storage_emulator.handlers import buckets, objects

    # Otherwise, every request for a missing object would be logged as an error.
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    logging.getLogger("api").setLevel(logging.CRITICAL)
    self._storage = storage.Storage(use_memory_fs=True)
    self.create_bucket = lambda name: buckets.create_bucket(name, self._storage)
    one_by_one = threading.Lock()
    read_data, download = server._read_data, objects.download

    class Handler(server.RequestHandler):
      def do_POST(self):
        with one_by_one:
          if self._is_met():
            super().do_POST()

      def do_DELETE(self):
        with one_by_one:
          if self._is_met():
            super().do_DELETE()

      def _is_met(self) -> bool:
        """Returns whether the generation matches; answers 412 otherwise."""
        url = parse.urlparse(self.path)
        query = parse.parse_qs(url.query)
        if "ifGenerationMatch" not in query:
          return True
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        name = query["name"][0] if "name" in query else parse.unquote(name[1:])
        current = generation(self.storage, bucket, name)
        if query["ifGenerationMatch"] == [current]:
          return True
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_error(412)
        return False

    def generation(store, bucket, name) -> str:
      try:
        return store.get_file_obj(bucket, name)["generation"]
      except Exception:  # There is no such object.
        return "0"

    def with_generation(request, response, store, *args, **kwargs):
      names = request.params["bucket_name"], request.params["object_id"]
      response["x-goog-generation"] = generation(store, *names)
      download(request, response, store, *args, **kwargs)

    def of_bytes(handler, query):
      kind = handler.headers.get("Content-Type") or ""
      if not kind.startswith("multipart/related"):
        return read_data(handler, query)
      boundary = b"--" + kind.partition("boundary=")[2].strip('"').encode()
      parts = server._read_raw_data(handler).split(b"\n" + boundary)
      meta, content = (part.partition(b"\n\n")[2] for part in parts[:2])
      return {
        "meta": json.loads(meta),
        "content": content,
        "content-type": "application/octet-stream",
      }

    server._read_data, objects.download = of_bytes, with_generation
    listener = http.ThreadingHTTPServer(
      ("127.0.0.1", 0), functools.partial(Handler, self._storage)
    )
    # gcsfs closes connections whose answers it does not need.
    listener.handle_error = lambda request, address: None
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listener.server_port}"
    self.env = {
      "STORAGE_EMULATOR_HOST": url,
      "TENSORSTORE_GCS_HTTP_URL": url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
      # Otherwise, gcsfs would ask Google for the type of the bucket.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


@pytest.fixture(scope="session")
def google_store():
  """A gs:// server that all tests of a process share."""
  for module in ("gcp_storage_emulator", "gcsfs"):
    if not importlib.util.find_spec(module):
      pytest.skip(f"pip install soupjax[bucket-tests] ({module})")
  return GoogleStore()


@pytest.fixture
def google_bucket(google_store, request, monkeypatch):
  """The address of a new, empty gs:// bucket."""
  for name, value in google_store.env.items():
    monkeypatch.setenv(name, value)
  name = f"b{abs(hash(request.node.nodeid)):x}"
  google_store.create_bucket(name)
  return f"gs://{name}"
