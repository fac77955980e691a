"""A server on this machine that speaks as much of the Hugging Face hub's protocol as downloads and uploads need."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serve(
  repositories: dict[str, Path | int | str],
  cut: dict[str, int] | None = None,
  *,
  stall: dict[str, int] | None = None,
  pause: dict[str, tuple[int, Callable[[], bool]]] | None = None,
  answers: dict[str, tuple[int, dict[str, str], bytes]] | None = None,
  uploads: Path | None = None,
) -> Iterator[tuple[str, list[str]]]:
  """Serves folders as repositories.

  Args:
    repositories: a folder for each OWNER/NAME, or the status that it fails with, or the address that it redirects to,
      http://HOST/OWNER/NAME; what is created is added.
    cut: for a file, the bytes after which its first answer is cut off.
    stall: for a file, the bytes after which its first answer stalls until its client has gone.
    pause: for a file, the bytes after which its first answer waits until a condition holds.
    answers: status, headers and body of what is answered instead to paths that begin with the key.
    uploads: folder for new repositories, which are accepted with the token "writer".

  Yields:
    The address, and the list of requests so far.
  """
  requests: list[str] = []
  breaks, stalls, pauses = dict(cut or {}), dict(stall or {}), dict(pause or {})

  class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
      pass

    def do_HEAD(self) -> None:
      self.answer(body=False)

    def do_GET(self) -> None:
      self.answer(body=True)

    def do_PUT(self) -> None:
      """Stores a large file under its digest."""
      requests.append(f"PUT {self.path.strip('/')}")
      (uploads / Path(self.path).name).write_bytes(self.body())
      self.reply({})

    def do_POST(self) -> None:
      path, body = self.path.partition("?")[0].strip("/"), self.body()
      requests.append(f"POST {path}")
      if uploads is None or self.headers.get("Authorization") != "Bearer writer":
        return self.fail("", 401)
      if path == "api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        requests.append(f"private: {asked.get('private') or asked.get('visibility') == 'private'}")
        if name in repositories:
          return self.reply({"url": name}, 409)
        repositories[name] = uploads / "of" / name
        repositories[name].mkdir(parents=True)
        return self.reply({"url": f"http://{self.headers['Host']}/{name}"})
      if path == "api/validate-yaml":
        return self.reply({"errors": [], "warnings": []})
      if path.endswith("/preupload/main"):
        files = [
          {"path": each["path"], "uploadMode": "lfs" if each["size"] > 5000 else "regular", "shouldIgnore": False}
          for each in json.loads(body)["files"]
        ]
        return self.reply({"files": files})
      if path.endswith("/info/lfs/objects/batch"):
        objects = [
          {**each, "actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{each['oid']}"}}}
          for each in json.loads(body)["objects"]
        ]
        return self.reply({"transfer": "basic", "objects": objects})
      if path.endswith("/commit/main"):
        owner, name = path.split("/")[2:4]
        for line in map(json.loads, body.decode().splitlines()):
          value = line["value"]
          if line["key"] == "header":
            continue
          target = repositories[f"{owner}/{name}"] / value["path"]
          target.parent.mkdir(parents=True, exist_ok=True)
          large = line["key"] == "lfsFile"
          target.write_bytes((uploads / value["oid"]).read_bytes() if large else base64.b64decode(value["content"]))
        return self.reply({"commitUrl": f"{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
      return self.fail("EntryNotFound")

    def body(self) -> bytes:
      if self.headers.get("Transfer-Encoding") != "chunked":
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))
      parts = []
      while size := int(self.rfile.readline(), 16):
        parts.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b"".join(parts)

    def reply(self, value: dict, status: int = 200) -> None:
      data = json.dumps(value).encode()
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      self.wfile.write(data)

    def answer_instead(self, status: int, headers: dict[str, str], data: bytes) -> None:
      self.send_response(status)
      for key, value in (headers | {"Content-Length": str(len(data))}).items():
        self.send_header(key, value)
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(data)

    def fail(self, code: str, status: int = 404) -> None:
      self.send_response(status)
      self.send_header("X-Error-Code", code)
      self.send_header("Content-Length", "0")
      self.end_headers()

    def answer(self, body: bool) -> None:
      path = self.path.partition("?")[0].strip("/")
      requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
      if "Authorization" in self.headers:
        requests.append(f"token for {path}")
      if instead := next((answer for start, answer in (answers or {}).items() if path.startswith(start)), None):
        return self.answer_instead(*instead)
      is_api = path.startswith("api/models/")
      owner, name, _, revision, *file = path.removeprefix("api/models/").split("/") + [""] * 2
      folder = repositories.get(f"{owner}/{name}")
      if f"{owner}/{name}" == "mine/gated":
        return self.fail("GatedRepo", 403)
      if folder is None:
        return self.fail("RepoNotFound", 401)
      if isinstance(folder, int):
        return self.fail("", folder)
      if isinstance(folder, str):
        server, *new = folder.rsplit("/", 2)
        location = f"{server}/{path.replace(f'{owner}/{name}', '/'.join(new))}"
        return self.answer_instead(307, {"Location": location}, b"")
      if revision not in ("main", COMMIT):
        return self.fail("RevisionNotFound")
      headers = {"X-Repo-Commit": COMMIT}
      start = 0
      if is_api:
        if "revision" not in path:
          return self.fail("EntryNotFound")
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        data = json.dumps(
          {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [entry(folder, p) for p in files]}
        ).encode()
      else:
        target = folder / "/".join(part for part in file if part)
        if not target.is_file():
          return self.fail("EntryNotFound")
        data = target.read_bytes()
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
          headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
      self.send_response(206 if start else 200)
      for key, value in (headers | {"Content-Length": str(len(data) - start)}).items():
        self.send_header(key, value)
      self.end_headers()
      if body:
        end = breaks.pop(file[0], None) if not is_api else None
        stop = stalls.pop(file[0], None) if not is_api else None
        last, is_time = pauses.pop(file[0], (None, None)) if not is_api else (None, None)
        part = data[start : end or stop or last]
        requests.append(f"sends {len(part)} of {path}")
        self.wfile.write(part)
        if stop is not None:
          requests.append(f"stalls {path}")
          self.connection.recv(1)  # nothing comes but the end of the connection
        if is_time:
          while not is_time():
            time.sleep(0.01)
          requests.append(f"sends {len(data) - last} of {path}")
          self.wfile.write(data[last:])
        if end or stop:
          self.close_connection = True
      return None

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}", requests
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def entry(folder: Path, path: Path) -> dict:
  """Returns what the hub tells about one file; large files have their digest."""
  found = {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size}
  if path.suffix == ".safetensors":
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found["lfs"] = {"size": found["size"], "sha256": digest, "pointerSize": 130}
  return found
