"""A Hub for tests: the part of the Hub's HTTP interface that publishing and loading use, on this machine.

    with LocalHub(tmp_path) as hub:
        subprocess.run(command, env={**os.environ, **hub.environment()})   # or hub.serve_this_process(monkeypatch)
        hub.files("tester/student")["config.json"]

What a user would see on huggingface.co is kept: tokens, rights, private repositories, LFS objects that are stored once,
commits that are applied whole or not at all. What a test needs besides is the log of requests, the history of commits,
and connections that break on demand.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml

asked_about_licences = pytest.mark.skipif(
    huggingface_hub.__version__.startswith("1."), reason="huggingface_hub before 2.0 asks huggingface.co about licences"
)
# What the Hub writes into a new repository, abridged: these go to LFS, as does everything binary or large.
GIT_ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("bin", "npy", "onnx", "parquet", "pt", "pt2", "pth", "safetensors", "zip")
)
LARGE = 10 * 1024**2
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
LICENSES = ("apache-2.0", "mit", "other")  # of those that the Hub knows
INVALID_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Blob:
    """Content of a file; LFS objects are known by their sha256, plain files by git's sha1."""

    content: bytes
    lfs: bool

    @property
    def oid(self):
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    id: str
    message: str
    blobs: dict[str, Blob]

    @property
    def files(self):
        return {path: blob.content for path, blob in self.blobs.items()}


@dataclass
class Repository:
    private: bool
    sdk: str | None = None
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def add_commit(self, branch, message, blobs):
        history = self.branches.setdefault(branch, [])
        parent = history[-1].id if history else ""
        state = repr((parent, message, {path: blob.oid for path, blob in sorted(blobs.items())}))
        history.append(Commit(hashlib.sha1(state.encode()).hexdigest(), message, blobs))
        return history[-1]

    def commit(self, revision):
        if revision in self.branches:
            return self.branches[revision][-1]
        everything = [commit for history in self.branches.values() for commit in history]
        return next((commit for commit in everything if commit.id == revision), None)


class LocalHub:
    """The server; a context manager.

    Attributes:
        url: What HF_ENDPOINT must be.
        token: Write token of the user "tester"; `read_token` may only read.
        repositories: (kind, id) -> repository, kind being "models", "datasets" or "spaces".
        visibility: Of a new repository for which none is asked; an organisation may have set it to "private".
        requests: (method, path, status) of every answered request, in order.
        cut_lfs_from: Connections break in the middle of LFS uploads from this one on (1 is the first); None: never.
        cut_commits: "before" breaks the connection while a commit is being sent, "after" when it has been applied.
        refuse_commits: Status with which commits are refused, such as 429 or 503; None takes them.
    """

    user = "tester"
    token = "hf_localHubWriteToken"
    read_token = "hf_localHubReadToken"

    def __init__(self, folder):
        self.folder = Path(folder)
        self.repositories = {}
        self.visibility = "public"
        self.lfs_objects = {}
        self.lfs_uploads = 0
        self.requests = []
        self.cut_lfs_from = None
        self.cut_commits = None
        self.refuse_commits = None
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._homes = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, token=token):
        """Variables for a child process, with a new and empty HF_HOME each time; token=None is not logged in."""
        self._homes += 1
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / f"hf_home_{self._homes}"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return variables | ({} if token is None else {"HF_TOKEN": token})

    def serve_this_process(self, monkeypatch, token=token):
        """Let uploads of this process come here, and broken ones be tried again without waiting.

        huggingface_hub reads its environment at import, so its constants are what must change. Downloads keep the
        address they were imported with: load what was published in a child process.
        """
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", self.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(self.folder / "no_token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    def create(self, repo_id, kind="models", private=False, sdk=None):
        """A new repository, as the Hub makes it: with one commit that holds `.gitattributes`."""
        repository = self.repositories[kind, repo_id] = Repository(private, sdk)
        repository.add_commit("main", "initial commit", {".gitattributes": Blob(GIT_ATTRIBUTES.encode(), lfs=False)})
        return repository

    def commits(self, repo_id, kind="models"):
        """History of the main branch, the Hub's own initial commit included."""
        return self.repositories[kind, repo_id].branches["main"]

    def files(self, repo_id, kind="models"):
        """Path -> content of the newest revision."""
        return self.commits(repo_id, kind)[-1].files


class _RefusalError(Exception):
    def __init__(self, status, message, code=None):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        try:
            status, headers, body = self._route()
        except _RefusalError as refusal:
            status, headers = refusal.status, {"X-Error-Message": refusal.message}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            body = {"error": refusal.message}
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _route(self):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                # The body of an LFS upload is read where it can be cut.
                self.body = b"" if answer is _Handler.put_lfs_object else self._read_body()
                return answer(self, **match.groupdict())
        self._read_body()
        raise _RefusalError(404, f"There is no {self.command} {path} here.")

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    # --- who may do what ---

    def _token(self):
        """The token that was sent, None without one; a wrong one is refused."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, self.hub.token, self.hub.read_token):
            raise _RefusalError(401, INVALID_TOKEN)
        return token

    def _repository(self, kind, repo_id, write=False):
        token = self._token()
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and token is None):
            raise _RefusalError(401 if token is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self._require_rights(repo_id.split("/")[0])
        return repository

    def _require_rights(self, namespace):
        token = self._token()
        if token is None:
            raise _RefusalError(401, "Invalid username or password.")
        if token == self.hub.read_token:
            raise _RefusalError(403, "Forbidden: you must use a write token to upload to a repository.")
        if namespace != self.hub.user:
            raise _RefusalError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}".')

    def _commit(self, repository, revision):
        commit = repository.commit(revision or "main")
        if commit is None:
            raise _RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- answers ---

    def whoami(self):
        if self._token() is None:
            raise _RefusalError(401, "Invalid username or password.")
        return 200, {}, {"type": "user", "name": self.hub.user, "orgs": []}

    def create_repository(self):
        request = json.loads(self.body)
        namespace = request.get("organization") or self.hub.user
        self._require_rights(namespace)
        kind, repo_id = f"{request.get('type', 'model')}s", f"{namespace}/{request['name']}"
        if kind == "spaces" and "sdk" not in request:
            raise _RefusalError(400, '"sdk" is required')
        answer = {"url": f"{self.hub.url}/{PREFIXES[kind]}{repo_id}"}
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repositories:
                error = f"You already created this {kind[:-1]} repo: {repo_id}"
                return 409, {}, {**answer, "error": error}
            visibility = request.get("visibility", self.hub.visibility)
            private = visibility == "private" or request.get("private", False)  # older clients say it so
            self.hub.create(repo_id, kind, private, request.get("sdk"))
        return 200, {}, answer

    def validate_yaml(self):
        header = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        if header is None:
            warning = "empty or missing yaml metadata in repo card"
            return 200, {}, {"errors": [], "warnings": [{"message": warning}]}
        try:
            license = yaml.safe_load(header[1]).get("license", "other")
        except yaml.YAMLError as error:
            return 400, {}, {"errors": [{"message": f"YAML: {error}"}], "warnings": []}
        if license not in LICENSES:
            message = f'"license" must be one of [{", ".join(LICENSES)}]'
            return 400, {}, {"errors": [{"message": message}], "warnings": []}
        return 200, {}, {"errors": [], "warnings": []}

    def info(self, kind, repo_id, revision=None):
        repository = self._repository(kind, repo_id)
        commit = self._commit(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.blobs)]
        answer = {"id": repo_id, "sha": commit.id, "private": repository.private, "tags": [], "siblings": siblings}
        return 200, {}, answer | ({"sdk": repository.sdk} if kind == "spaces" else {})

    def tree(self, kind, repo_id, revision):
        blobs = self._commit(self._repository(kind, repo_id), revision).blobs
        entries = []
        for path, blob in sorted(blobs.items()):
            if "/" in path and self.query.get("recursive", ["false"])[0].lower() != "true":
                continue
            entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid[:40]}
            if blob.lfs:
                entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}
            entries.append(entry)
        return 200, {}, entries

    def auth_check(self, kind, repo_id):
        self._repository(kind, repo_id, write=True)
        return 200, {}, {}

    def create_branch(self, kind, repo_id, branch):
        repository = self._repository(kind, repo_id, write=True)
        repository.branches[branch] = [*repository.branches["main"]]
        return 200, {}, {}

    def preupload(self, kind, repo_id, revision):
        blobs = self._commit(self._repository(kind, repo_id, write=True), revision).blobs
        files = []
        for file in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(file["sample"])
            listed = f"*{Path(file['path']).suffix} filter=lfs" in GIT_ATTRIBUTES
            known = {"oid": blobs[file["path"]].oid} if file["path"] in blobs else {}
            mode = "lfs" if binary or listed or file["size"] > LARGE else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return 200, {}, {"files": files}

    def lfs_batch(self, prefix, repo_id):
        self._repository(prefix.rstrip("/") or "models", repo_id, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs_objects:
                upload, verify = f"{self.hub.url}/lfs/{item['oid']}", f"{self.hub.url}/lfs/verify"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        return 200, {}, {"transfer": "basic", "objects": objects}

    def put_lfs_object(self, oid):
        with self.hub.lock:
            self.hub.lfs_uploads += 1
            cut = self.hub.cut_lfs_from is not None and self.hub.lfs_uploads >= self.hub.cut_lfs_from
        if cut:
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            raise ConnectionAbortedError
        content = self._read_body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise _RefusalError(400, "The content is not that of the oid.")
        self.hub.lfs_objects[oid] = content
        return 200, {}, b""

    def verify_lfs_object(self):
        self._token()
        known = self.hub.lfs_objects.get(json.loads(self.body)["oid"])
        if known is None or len(known) != json.loads(self.body)["size"]:
            raise _RefusalError(404, "Object not found.")
        return 200, {}, {}

    def commit(self, kind, repo_id, revision):
        repository = self._repository(kind, repo_id, write=True)
        self._commit(repository, revision)
        if self.hub.refuse_commits is not None:
            raise _RefusalError(self.hub.refuse_commits, "Not now.")
        if self.hub.cut_commits == "before":
            raise ConnectionAbortedError
        header, *changes = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            blobs = dict(repository.branches[revision][-1].blobs)
            for change in changes:
                self._apply(change["key"], change["value"], blobs)
            commit = repository.add_commit(revision, header["value"]["summary"], blobs)
        if self.hub.cut_commits == "after":
            raise ConnectionAbortedError
        url = f"{self.hub.url}/{PREFIXES[kind]}{repo_id}/commit/{commit.id}"
        return 200, {}, {"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""}

    def _apply(self, key, value, blobs):
        path = value["path"]
        if key == "file":
            blobs[path] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.lfs_objects:
                raise _RefusalError(400, f"LFS object {value['oid']} of {path} was never uploaded.")
            blobs[path] = Blob(self.hub.lfs_objects[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if blobs.pop(path, None) is None:
                raise _RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise _RefusalError(400, f"Unknown change {key}.")

    def resolve(self, prefix, repo_id, revision, path):
        commit = self._commit(self._repository(prefix.rstrip("/") or "models", repo_id), revision)
        blob = commit.blobs.get(path)
        if blob is None:
            raise _RefusalError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.oid}"', "Content-Type": "application/octet-stream"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))}
        return 200, headers, blob.content


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_GIT = r"/(?P<prefix>datasets/|spaces/|)(?P<repo_id>[^/]+/[^/]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create_repository),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", _API, _Handler.info),
    ("GET", _API + r"/auth-check/write", _Handler.auth_check),
    ("GET", _API + r"/revision/(?P<revision>.+)", _Handler.info),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("POST", _API + r"/branch/(?P<branch>.+)", _Handler.create_branch),
    ("POST", _API + r"/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", _API + r"/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", _GIT + r"\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put_lfs_object),
    ("POST", "/lfs/verify", _Handler.verify_lfs_object),
    ("GET|HEAD", _GIT + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
