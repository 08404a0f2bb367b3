"""A local fake Hub: the few endpoints of huggingface.co that clients use to read and write repositories.

It imitates status codes, error codes and headers, but not the validation rules of the real Hub.
Clients find it by `HF_ENDPOINT`, which they read when they are imported.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit


class LocalServer:
    """An HTTP server in a thread, on a free port, that records all requests.

    A subclass implements `answer`.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []  # ("GET", "/path")
        self.tokens: list[str] = []  # from the headers "Authorization: Bearer ..."
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        """Answer one request; `path` has no query and is still percent-encoded."""
        raise NotImplementedError

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a response waits 40 ms for the acknowledgement of its headers

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                server.requests.append((self.command, path))
                server.tokens += re.findall(r"^Bearer (.+)", self.headers.get("Authorization", ""))
                server.answer(self, path, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    """Send an answer; a HEAD request gets the headers only."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


@dataclass
class Repository:
    """A repository that starts with one commit on the branch `main`.

    Args:
        commit (`str`): 40 hexadecimal digits.
        files (`dict[str, bytes]`): Content by path.
        gated (`bool`): Visible to everybody, but only a token with access can read its files.
        private (`bool`): Only visible to a token with access.
    """

    commit: str
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # commits by branch, and by refs/pr/N
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commits[self.commit] = self.files
        self.refs["main"] = self.commit

    def resolve(self, revision: str) -> str:
        """The commit of a branch, a tag, a pull request or a commit."""
        commit = self.refs.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def at(self, revision: str) -> dict[str, bytes]:
        """The files at a revision."""
        return self.commits[self.resolve(revision)]


class HubError(Exception):
    """An error answer of the Hub: status, `X-Error-Code`, `X-Error-Message` and optionally a body."""

    def __init__(self, status: int, code: str, message: str = "", body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


@dataclass
class Request:
    """One request to a repository, with the access of its token and the named groups of the path."""

    hub: "FakeHub"
    repo_id: str
    repository: Repository
    has_access: bool
    body: bytes
    query: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        return self.parts.get("revision", "main")

    @property
    def files(self) -> dict[str, bytes]:
        return self.repository.at(self.revision)

    def json(self) -> dict:
        return json.loads(self.body or b"{}")


Answer = tuple[bytes, dict[str, str]]


class FakeHub(LocalServer):
    """A Hub with the datasets in `repositories`; models have the keys `models/owner/name`.

    `token` can read and write gated and private repositories; `reading_token` can only read them.
    """

    token = "hf_stand_in_token"
    reading_token = "hf_stand_in_reader"

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # uploaded large files by sha256, also those in no commit
        self.failing = False  # answer everything with "500 Internal Server Error"
        self.dies_at: int | None = None  # from this request on (the first is 0) every connection breaks
        self.loses_answer = False  # the first broken request is still executed; only its answer is lost
        self.before_commit: Callable[[], None] | None = None  # called before a commit, e.g. for a concurrent one
        self._lock = threading.RLock()

    def answer(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        with self._lock:
            number = len(self.requests) - 1
            dead = self.dies_at is not None and number >= self.dies_at
            if dead and not (self.loses_answer and number == self.dies_at):
                handler.close_connection = True
                return
            try:
                if self.failing:
                    raise HubError(500, "InternalError")
                status, (content, headers) = 200, self._route(handler, path, body)
            except HubError as error:
                status, content, headers = error.status, error.body, error.headers
        if dead:
            handler.close_connection = True
        else:
            send(handler, status, content, headers)

    def _route(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> Answer:
        authorization = handler.headers.get("Authorization")
        may_write = authorization == f"Bearer {self.token}"
        has_access = may_write or authorization == f"Bearer {self.reading_token}"
        query = parse_qs(urlsplit(handler.path).query)
        for method, pattern, endpoint in _ENDPOINTS:
            match = re.fullmatch(pattern, path)
            if not match or handler.command not in (method, "HEAD" if method == "GET" else method):
                continue
            if method != "GET" and endpoint not in (_paths_info, _validate, _upload):
                _require_writer(has_access, may_write)
            parts = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
            repo_id = parts.pop("repo_id", None)
            if repo_id is None:
                return endpoint(Request(self, "", Repository("", {}), has_access, body, query, parts))
            # Paths of models have no prefix where those of datasets begin with `datasets/`.
            is_model = parts.get("repo_type", "models") == "models"
            repository = self.repositories.get(f"models/{repo_id}" if is_model else repo_id)
            if repository is None or (repository.private and not has_access):
                raise HubError(404 if has_access else 401, "RepoNotFound", "Repository not found")
            request = Request(self, repo_id, repository, has_access, body, query, parts)
            if "revision" in parts:
                repository.resolve(parts["revision"])
            return endpoint(request)
        raise HubError(404, "NotFound")


def _require_writer(has_access: bool, may_write: bool) -> None:
    if not has_access:
        raise HubError(401, "Unauthorized", "Invalid username or password.")
    if not may_write:
        raise HubError(403, "Forbidden", "You need write access.")


# ------------------------------------------------------------------------------------------------------------ reading


def _file(request: Request) -> Answer:
    if request.repository.gated and not request.has_access:
        raise HubError(401, "GatedRepo", f"Access to dataset {request.repo_id} is restricted.")
    content = request.files.get(request.parts["path"])
    if content is None:
        raise HubError(404, "EntryNotFound", "Entry not found")
    commit = request.repository.resolve(request.revision)
    return content, {"X-Repo-Commit": commit, "ETag": f'"{_object_id(content)}"'}


def _info(request: Request) -> Answer:
    repository = request.repository
    return _json(
        {
            "id": request.repo_id,
            "sha": repository.resolve(request.revision),
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "siblings": [{"rfilename": path} for path in request.files],
        }
    )


def _tree(request: Request) -> Answer:
    folder = request.parts.get("path", "")
    return _json([_entry(path, request.files[path]) for path in request.files if path.startswith(folder)])


def _paths_info(request: Request) -> Answer:
    paths = parse_qs(request.body.decode())["paths"]
    return _json([_entry(path, request.files[path]) for path in paths if path in request.files])


def _entry(path: str, content: bytes) -> dict:
    return {"type": "file", "path": path, "oid": _object_id(content), "size": len(content)}


def _refs(request: Request) -> Answer:
    repository = request.repository
    branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.refs.items()]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()]
    return _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


# ------------------------------------------------------------------------------------------------------------ writing


def _create(request: Request) -> Answer:
    settings = request.json()
    repo_id = f"{settings['organization']}/{settings['name']}"
    key = repo_id if settings.get("type") == "dataset" else f"models/{repo_id}"
    if key in request.hub.repositories:
        raise HubError(409, "Conflict", "You already created this repo", json.dumps({"url": repo_id}).encode())
    files = {".gitattributes": b"*.parquet filter=lfs\n"}
    is_private = settings.get("visibility") == "private"
    request.hub.repositories[key] = Repository(_new_commit(key), files, private=is_private)
    return _json({"url": f"{request.hub.url}/datasets/{repo_id}"})


def _settings(request: Request) -> Answer:
    repository, settings = request.repository, request.json()
    repository.gated = bool(settings.get("gated", repository.gated))
    repository.private = settings.get("visibility", "private" if repository.private else "") == "private"
    return _json({})


def _branch(request: Request) -> Answer:
    name = request.parts["name"]
    if name in request.repository.refs:
        raise HubError(409, "Conflict", "Reference exists")
    request.repository.refs[name] = request.repository.resolve("main")
    return _json({})


def _tag(request: Request) -> Answer:
    name = request.json()["tag"]
    if name in request.repository.tags:
        raise HubError(409, "Conflict", "Tag exists")
    request.repository.tags[name] = request.repository.resolve(request.revision)
    return _json({})


def _preupload(request: Request) -> Answer:
    """The upload mode of each file, LFS for large ones, and the hash of the files that exist."""
    files = []
    for file in request.json()["files"]:
        large = file["path"].endswith((".parquet", ".safetensors", ".png"))
        existing = request.files.get(file["path"])
        oid = None if existing is None else hashlib.sha256(existing).hexdigest() if large else _object_id(existing)
        mode = "lfs" if large else "regular"
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return _json({"files": files})


def _batch(request: Request) -> Answer:
    objects = []
    for large_file in request.json()["objects"]:
        actions = {"upload": {"href": f"{request.hub.url}/lfs/{large_file['oid']}"}}
        is_uploaded = large_file["oid"] in request.hub.objects
        objects.append({**large_file, **({} if is_uploaded else {"actions": actions})})
    return _json({"transfer": "basic", "objects": objects})


def _upload(request: Request) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != request.parts["oid"]:
        raise HubError(400, "BadRequest", "Not that object")
    request.hub.objects[request.parts["oid"]] = request.body
    return _json({})


def _commit(request: Request) -> Answer:
    if request.hub.before_commit is not None:
        request.hub.before_commit()
    repository, lines = request.repository, [json.loads(line) for line in request.body.splitlines()]
    parent = lines[0]["value"].get("parentCommit")
    if parent is not None and parent != repository.resolve(request.revision):
        raise HubError(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
    files = dict(request.files)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = request.hub.objects[value["oid"]]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
    commit = _new_commit(request.body.hex())
    repository.commits[commit] = files
    address = f"{request.hub.url}/{request.parts['repo_type']}/{request.repo_id}".replace("/models/", "/")
    answer = {"success": True, "commitUrl": f"{address}/commit/{commit}", "commitOid": commit}
    if request.query.get("create_pr") == ["1"]:
        ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.refs)}"
        answer["pullRequestUrl"] = f"{address}/discussions/{ref[8:]}"
    else:
        ref = request.revision
    repository.refs[ref] = commit
    if ref == "main":
        repository.commit, repository.files = commit, files
    return _json(answer)


def _validate(request: Request) -> Answer:
    if not request.json()["content"].startswith("---\n"):
        raise HubError(400, "BadRequest", "", json.dumps({"errors": [{"message": "no metadata"}]}).encode())
    return _json({"errors": [], "warnings": []})


def _new_commit(seed: str) -> str:
    return hashlib.sha1(f"{seed} {time.time_ns()}".encode()).hexdigest()


def _object_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _json(value: object) -> Answer:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


_ID = r"(?P<repo_id>[^/]+/[^/]+)"
_REPO_TYPE = r"(?P<repo_type>datasets|models)"
_REVISION = r"(?P<revision>[^/]+)"
_ENDPOINTS: list[tuple[str, str, Callable[[Request], Answer]]] = [
    ("GET", rf"/{_REPO_TYPE}/{_ID}/resolve/{_REVISION}/(?P<path>.+)", _file),
    ("GET", rf"/{_ID}/resolve/{_REVISION}/(?P<path>.+)", _file),
    ("GET", rf"/api/{_REPO_TYPE}/{_ID}/refs", _refs),
    ("GET", rf"/api/{_REPO_TYPE}/{_ID}(?:/revision/{_REVISION})?", _info),
    ("GET", rf"/api/{_REPO_TYPE}/{_ID}/tree/{_REVISION}(?:/(?P<path>.+))?", _tree),
    ("POST", rf"/api/{_REPO_TYPE}/{_ID}/paths-info/{_REVISION}", _paths_info),
    ("POST", "/api/repos/create", _create),
    ("PUT", rf"/api/{_REPO_TYPE}/{_ID}/settings", _settings),
    ("POST", rf"/api/{_REPO_TYPE}/{_ID}/branch/(?P<name>[^/]+)", _branch),
    ("POST", rf"/api/{_REPO_TYPE}/{_ID}/tag/{_REVISION}", _tag),
    ("POST", rf"/api/{_REPO_TYPE}/{_ID}/preupload/{_REVISION}", _preupload),
    ("POST", rf"/(?P<repo_type>datasets)/{_ID}\.git/info/lfs/objects/batch", _batch),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _upload),
    ("POST", rf"/api/{_REPO_TYPE}/{_ID}/commit/{_REVISION}", _commit),
    ("POST", "/api/validate-yaml", _validate),
]
