"""A hub of our own on the loopback device: as much of its protocol as the libraries speak.

with Hub() as hub:
    hub.add("models", "me/tiny", {"config.json": b"{}"})
    subprocess.run(command, env=os.environ | hub.environment(tmp_path))
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

MAIN = "main"


class Hub:
    """Repositories by kind (`models`, `datasets`), id and revision, served while it is entered."""

    def __init__(self):
        self.repositories = {}
        self.discussions = {}
        self.refused = set()
        """Paths that the user has no right to."""
        self.cards = []
        """Every README that was to be checked before it is uploaded."""
        self.requests = []
        """Everything that was asked, as "METHOD /path"."""

    def add(self, kind, name, files, revision=MAIN):
        """Put a revision of a repository there: its files by their paths."""
        commit = digest(repr((name, revision, sorted(files.items()))).encode())
        self.repositories.setdefault((kind, name), {}).update({revision: commit, commit: files})

    def propose(self, name, number, author, files, status="open"):
        """Open a pull request on a model: a discussion and a revision of its own."""
        self.add("models", name, files, f"refs/pr/{number}")
        self.discussions.setdefault(name, []).append(
            {
                "num": number,
                "title": "Adding `safetensors` variant of this model",
                "author": {"name": author},
                "createdAt": "2023-01-01T00:00:00.000Z",
                "status": status,
                "isPullRequest": True,
                "repo": {"name": name, "type": "model"},
            }
        )

    def environment(self, home):
        """Point the libraries of a process here, with everything they cache under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def fetched(self):
        """Tell the names of the files whose content was asked for."""
        pattern = r"GET /.*/resolve/[^/]+/(.*)"
        return {match[1] for line in self.requests if (match := re.fullmatch(pattern, line))}

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Go away: whoever asks from now on finds nobody."""
        self.server.shutdown()
        self.server.server_close()


def find_revision(hub, name, kind="models", revision=MAIN):
    """Return a revision's commit and files."""
    commit = hub.repositories[kind, name][revision]
    return commit, hub.repositories[kind, name][commit]


def digest(content):
    return hashlib.sha1(content).hexdigest()


def make_handler(hub):
    """Make the class that answers for a hub."""

    class Handler(Answers, BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self):
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            path = unquote(urlsplit(self.path).path)
            query = parse_qs(urlsplit(self.path).query)
            hub.requests.append(f"{self.command} {path}")
            if path in hub.refused:
                return self.send_content(b"", {"X-Error-Message": "no right to"}, 403)
            for pattern, method in ROUTES.items():
                if match := re.fullmatch(pattern, path):
                    groups = {key: text for key, text in match.groupdict().items() if text}
                    return method(self, hub, body, query, **groups)
            return self.refuse("EntryNotFound")

        do_GET = do_HEAD = do_POST = answer  # noqa: N815

    return Handler


class Answers:
    """What a handler answers, a method for each kind of question."""

    def describe(self, hub, _body, _query, kind, name, revision=MAIN):
        if (found := self.find(hub, kind, name, revision)) is None:
            return None
        commit, files = found
        siblings = [{"rfilename": path} for path in files]
        content = {"_id": digest(name.encode())[:24], "id": name, "sha": commit, "tags": []}
        return self.send_json(content | {"siblings": siblings, "private": False, "gated": False})

    def list_tree(self, hub, _body, query, kind, name, revision, folder=""):
        if (found := self.find(hub, kind, name, revision)) is None:
            return None
        files = {path: content for path, content in found[1].items() if path.startswith(folder)}
        if query.get("recursive", [""])[0].lower() != "true":
            start = f"{folder}/" if folder else ""
            files = {start + path.removeprefix(start).partition("/")[0]: None for path in files}
        return self.send_json([describe_entry(path, found[1]) for path in files])

    def list_paths(self, hub, body, _query, kind, name, revision):
        if (found := self.find(hub, kind, name, revision)) is None:
            return None
        text = body.decode()
        asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        return self.send_json([describe_entry(path, found[1]) for path in asked if path])

    def list_discussions(self, hub, _body, query, name):
        author = query.get("author", [None])[0]
        page = int(query.get("p", ["0"])[0])
        listed = [
            discussion
            for discussion in hub.discussions.get(name, [])
            if page == 0 and author in (None, discussion["author"]["name"])
        ]
        return self.send_json({"discussions": listed, "count": len(listed), "start": 0})

    def send_file(self, hub, _body, _query, name, revision, path, kind="models/"):
        kind = kind.strip("/")
        if (found := self.find(hub, kind, name, revision)) is None:
            return None
        commit, files = found
        if path not in files:
            return self.refuse("EntryNotFound", {"X-Repo-Commit": commit})
        content = files[path]
        headers = {"ETag": f'"{digest(content)}"', "X-Repo-Commit": commit}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send_content(content[first : last + 1], headers, status=206)
        return self.send_content(content, headers)

    def create(self, hub, body, _query):
        asked = json.loads(body)
        name = (
            asked["name"]
            if not asked.get("organization")
            else (f"{asked['organization']}/{asked['name']}")
        )
        hub.add(f"{asked.get('type') or 'model'}s", name, {})
        return self.send_json({"url": f"{hub.url}/{name}", "name": name, "id": name})

    def check_card(self, hub, body, _query):
        hub.cards.append(json.loads(body)["content"])
        return self.send_json({"errors": [], "warnings": []})

    def prepare_upload(self, _hub, body, _query, **_names):
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for file in json.loads(body)["files"]
        ]
        return self.send_json({"files": files})

    def commit(self, hub, body, _query, kind, name, revision):
        if (found := self.find(hub, kind, name, revision)) is None:
            return None
        parts = [json.loads(line) for line in body.splitlines()]
        files = {
            part["value"]["path"]: base64.b64decode(part["value"]["content"])
            for part in parts
            if part["key"] == "file"
        }
        hub.add(kind, name, found[1] | files, revision)
        commit = hub.repositories[kind, name][revision]
        url = f"{hub.url}/{name}/commit/{commit}"
        return self.send_json({"commitUrl": url, "commitOid": commit, "success": True})

    def find(self, hub, kind, name, revision):
        """Look up a revision's commit and files; None when the refusal has been sent."""
        repository = hub.repositories.get((kind, name))
        if repository is None:
            return self.refuse("RepoNotFound")
        commit = repository.get(revision, revision)
        if isinstance(commit, dict):
            return revision, commit
        if commit not in repository:
            return self.refuse("RevisionNotFound")
        return commit, repository[commit]

    def send_json(self, content):
        self.send_content(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, code, headers=()):
        self.send_content(
            b"", {"X-Error-Code": code, "X-Error-Message": code, **dict(headers)}, 404
        )

    def send_content(self, content, headers, status=200):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def describe_entry(path, files):
    """Describe a file, or the folder of that name."""
    if path not in files:
        return {"type": "directory", "path": path, "oid": digest(path.encode())}
    content = files[path]
    return {"type": "file", "path": path, "size": len(content), "oid": digest(content)}


KIND, NAME, REVISION = r"(?P<kind>models|datasets)", r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>.+?)"
COMMIT = r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = {
    rf"/api/{KIND}/{NAME}": Answers.describe,
    rf"/api/{KIND}/{NAME}/revision/{REVISION}": Answers.describe,
    rf"/api/{KIND}/{NAME}/tree/{COMMIT}(/(?P<folder>.+))?": Answers.list_tree,
    rf"/api/{KIND}/{NAME}/paths-info/{COMMIT}": Answers.list_paths,
    rf"/api/models/{NAME}/discussions": Answers.list_discussions,
    "/api/repos/create": Answers.create,
    "/api/validate-yaml": Answers.check_card,
    rf"/api/{KIND}/{NAME}/preupload/{COMMIT}": Answers.prepare_upload,
    rf"/api/{KIND}/{NAME}/commit/{COMMIT}": Answers.commit,
    rf"/(?P<kind>datasets/)?{NAME}/resolve/{COMMIT}/(?P<path>.+)": Answers.send_file,
}
