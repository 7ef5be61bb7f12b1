"""Drives the platform named by the environment with the official Python SDK.

The argument is the way of the calls to a VM: `vm` is the SDK's default, `api` leads them through the
API. Every method of the SDK is either called and its answer checked against the SDK's own models, or
listed as not served. Prints the number of methods of each kind.
"""

import base64
import inspect
import io
import re
import sys
import zipfile

import httpx
import kernel
from kernel._resource import SyncAPIResource

WAY = sys.argv[1]

# The methods that the emulator does not serve. Each answers 501.
NOT_SERVED = """
api_keys: create delete list retrieve rotate update
apps: list
audit_logs: download export_chunk list
audit_logs.export_destinations: create delete list retrieve test update
auth.connections: create delete follow list login retrieve submit timeline update
auth.context: retrieve
browsers: load_extensions repl
browsers.playwright: execute
browsers.playwright.executors: delete list
browsers.replays: download list start stop
browsers.telemetry: events stream
browsers.webmcp: invoke_tool list_tools
browsers.webmcp.custom_tools: add list remove
config_registry: list lookup resolve
config_registry.analyses: cancel list retrieve wait_for_result
credential_providers: create delete list list_items retrieve test update
credentials: create delete list retrieve totp_code update
deployments: create delete follow list retrieve
extensions: delete download download_from_chrome_store get list upload
invocations: create delete_browsers follow list list_browsers retrieve update
organization.entitlements: retrieve
organization.limits: retrieve update
profiles: create delete download list retrieve update
projects: create delete list retrieve update
projects.limits: retrieve update
proxies: check create delete list retrieve update
search: create retrieve
search.contents: fetch
search.providers: list
telemetry.destinations: create delete list retrieve update
vault_provider_configs: create delete list retrieve update
vaults: delete list retrieve retrieve_encryption_key upsert
vaults.items: delete events list perform_operation retrieve update upsert
"""

# Subresources of a session that the SDK requests from the VM by default.
IN_VM = re.compile("/(computer|curl|fs|playwright|process|logs/stream|telemetry/stream)(/|$)")

sent = []


def client(max_retries=0):
    """A client that checks the answers, and records them with their requests."""
    http = kernel.DefaultHttpxClient(event_hooks={"response": [sent.append]})
    return kernel.Kernel(_strict_response_validation=True, max_retries=max_retries, http_client=http)


def methods(resource, prefix=""):
    """Names of the methods of a resource and of the resources in it."""
    for name in dir(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        value = getattr(resource, name)
        if isinstance(value, SyncAPIResource):
            yield from methods(value, f"{prefix}{name}.")
        elif prefix and callable(value):
            yield prefix + name


strict = client()
called = set()


def call(name, /, *args, **options):
    """Calls a method by its name."""
    called.add(name)
    value = strict
    for part in name.split("."):
        value = getattr(value, part)
    return value(*args, **options)


def refused(status, name, /, *args, **options):
    """The error of a call that must fail."""
    try:
        call(name, *args, **options)
    except kernel.APIStatusError as error:
        assert error.status_code == status, error
        return str(error)
    raise AssertionError(f"{name} was answered")


def said(answer):
    """What an exec answered: its code and its standard output."""
    return answer.exit_code, base64.b64decode(answer.stdout_b64 or "").decode()


def sandbox(method, path, body=None):
    """Makes a call to the emulator itself."""
    httpx.request(method, strict.base_url.join(f"/_sandbox/{path}"), json=body).raise_for_status()


def drive_browsers():
    wish = dict(
        name="by-python", headless=True, timeout_seconds=120, memory="2GiB", region="eu-west", kiosk_mode=True,
        viewport={"width": 800, "height": 600}, start_url="https://a.example/", tags={"by": "python"},
        proxy={"mode": "direct"}, proxy_id="p", network={"allowed_hosts": ["a.example"]}, telemetry={"enabled": True},
        location={"locale": "de-DE"}, chrome_policy={"A": 1}, vaults=[{"name": "v"}],
    )
    browser = call("browsers.create", profile={"name": "work", "save_changes": True}, **wish)
    assert browser.cdp_ws_url.startswith("ws://") and browser.base_url, browser
    session = browser.session_id
    found = call("browsers.retrieve", "by-python").to_dict()
    for name, value in wish.items():
        if name not in ("telemetry", "location"):
            assert found[name] == value, (name, found)
    assert found["location"]["locale_source"] == "override" and found["profile"]["name"] == "work", found
    gpu = call("browsers.create", gpu=True)
    assert (gpu.memory, gpu.video_memory) == ("6GiB", "2GiB"), gpu
    call("browsers.delete_by_id", gpu.session_id)
    changed = call("browsers.update", session, tags={}, start_url="https://b.example/", location={"locale": None})
    assert (changed.tags, changed.start_url, changed.location.locale) == ({}, "https://b.example/", "en-US"), changed
    # More sessions than a page, so that the SDK must request another one.
    others = [call("browsers.create", region="us-west").session_id for _ in range(2)]
    ids = lambda **filters: [one.session_id for one in call("browsers.list", **filters)]
    assert ids(limit=1) == [session, *others]
    assert ids(query="PYTHON") == [session] and ids(region="us-west") == others
    assert ids(status="deleted") == [gpu.session_id]
    deleted = call("browsers.retrieve", gpu.session_id, include_deleted=True)
    assert deleted.deleted_at and deleted.usage_status == "ready", deleted
    refused(404, "browsers.retrieve", gpu.session_id)
    return session, others


def drive_process(session):
    assert said(call("browsers.process.exec", session, command="echo", args=["$HOME"])) == (0, "$HOME\n")
    ran = call("browsers.process.exec", session, command="/bin/sh", args=["-c", "exit 5"], as_root=True)
    assert said(ran) == (5, "")
    assert "no such file or directory" in refused(400, "browsers.process.exec", session, command="/no/such/program")

    shell = dict(command="/bin/sh", args=["-c", "read line; echo got $line"])
    spawned = call("browsers.process.spawn", session, **shell).process_id
    at = dict(id_or_name=session)
    assert call("browsers.process.status", spawned, **at).state == "running"
    call("browsers.process.stdin", spawned, data_b64=base64.b64encode(b"it\n").decode(), **at)
    events = list(call("browsers.process.stdout_stream", spawned, **at))
    assert base64.b64decode(events[0].data_b64) == b"got it\n", events
    assert events[-1].event == "exit" and events[-1].exit_code == 0, events

    shell = dict(command="sh", args=["-c", "stty size; read a; stty size"], allocate_tty=True, rows=5, cols=66)
    spawned = call("browsers.process.spawn", session, **shell).process_id
    assert call("browsers.process.resize", spawned, rows=6, cols=77, **at).ok
    call("browsers.process.stdin", spawned, data_b64=base64.b64encode(b"\r").decode(), **at)
    events = list(call("browsers.process.stdout_stream", spawned, **at))
    output = b"".join(base64.b64decode(event.data_b64) for event in events[:-1])
    assert output.endswith(b"6 77\r\n") and events[-1].exit_code == 0, events

    spawned = call("browsers.process.spawn", session, command="sleep", args=["1000"]).process_id
    assert call("browsers.process.kill", spawned, signal="TERM", **at).ok


def drive_files(session):
    content = bytes(range(256)) * 4096
    call("browsers.fs.create_directory", session, path="/tmp/new")
    # An empty directory is null, which the SDK's own model does not allow.
    lenient = kernel.Kernel()
    assert lenient.browsers.fs.list_files(session, path="/tmp/new") is None
    call("browsers.fs.write_file", session, content, path="/tmp/new/a b", mode="600")
    assert call("browsers.fs.read_file", session, path="/tmp/new/a b").read() == content
    (entry,) = call("browsers.fs.list_files", session, path="/tmp/new")
    assert (entry.name, entry.size_bytes, entry.is_dir, entry.mode) == ("a b", len(content), False, "-rw-------")
    call("browsers.fs.move", session, src_path="/tmp/new/a b", dest_path="/tmp/new/c")
    call("browsers.fs.set_file_permissions", session, path="/tmp/new/c", mode="0755")
    assert call("browsers.fs.file_info", session, path="/tmp/new/c").mode == "-rwxr-xr-x"

    watch = call("browsers.fs.watch.start", session, path="/tmp/new").watch_id
    with call("browsers.fs.watch.events", watch, id_or_name=session) as events:
        call("browsers.fs.delete_file", session, path="/tmp/new/c")
        event = next(iter(events))
        assert (event.type, event.path, event.name) == ("DELETE", "/tmp/new/c", "c"), event
        call("browsers.fs.watch.stop", watch, id_or_name=session)

    call("browsers.fs.write_file", session, b"one\ntwo\n", path="/tmp/new/log")
    with call("browsers.logs.stream", session, source="path", path="/tmp/new/log", follow=False) as lines:
        assert [next(lines).message for _ in range(2)] == ["one", "two"]

    call("browsers.fs.delete_directory", session, path="/tmp/new")
    refused(404, "browsers.fs.file_info", session, path="/tmp/new")
    refused(400, "browsers.fs.file_info", session, path="tmp")

    pairs = [{"file": content, "dest_path": "/tmp/up/a"}, {"file": b"b", "dest_path": "/tmp/up/sub/b"}]
    call("browsers.fs.upload", session, files=pairs)
    assert call("browsers.fs.read_file", session, path="/tmp/up/a").read() == content
    packed = call("browsers.fs.download_dir_zip", session, path="/tmp/up").read()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None and archive.namelist() == ["a", "sub/", "sub/b"], archive.namelist()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/ä", content)
    call("browsers.fs.upload_zip", session, dest_path="/tmp/unpacked", zip_file=made.getvalue())
    assert call("browsers.fs.read_file", session, path="/tmp/unpacked/deep/ä").read() == content


def drive_computer(session):
    call("browsers.computer.batch", session, actions=[{"type": "sleep", "sleep": {"duration_ms": 1}}])
    call("browsers.computer.move_mouse", session, x=1, y=2)
    call("browsers.computer.click_mouse", session, x=3, y=4, button="middle", click_type="click")
    call("browsers.computer.drag_mouse", session, path=[[1, 2], [5, 6]])
    call("browsers.computer.scroll", session, x=7, y=8, delta_y=3)
    position = call("browsers.computer.get_mouse_position", session)
    assert (position.x, position.y) == (7, 8), position
    call("browsers.computer.press_key", session, keys=["Ctrl+t"])
    call("browsers.computer.type_text", session, text="text")
    assert call("browsers.computer.set_cursor_visibility", session, hidden=False).ok
    call("browsers.computer.write_clipboard", session, text="copied")
    assert call("browsers.computer.read_clipboard", session).text == "copied"
    region = {"x": 0, "y": 0, "width": 20, "height": 10}
    image = call("browsers.computer.capture_screenshot", session, region=region).read()
    assert image.startswith(b"\x89PNG") and image[16:24] == bytes([0, 0, 0, 20, 0, 0, 0, 10]), image
    refused(400, "browsers.computer.move_mouse", session, x=800, y=0)


def drive_curl(session):
    url = str(strict.base_url.join("/_sandbox/clock"))
    answer = call("browsers.curl", session, url=url)
    assert answer.status == 200 and answer.headers["content-type"] == ["application/json"], answer
    assert "now_seconds" in answer.body, answer
    call("browsers.request", session, "POST", url, json={"advance_seconds": 0}).raise_for_status()
    with call("browsers.stream", session, "GET", url) as answer:
        assert "now_seconds" in answer.read().decode()
    assert call("browsers.curl", session, url=str(strict.base_url.join("/browsers"))).status == 401


def drive_pools():
    wish = dict(name="pool-by-python", size=1, headless=True, memory="2GiB", start_url="https://a.example/")
    pool = call("browser_pools.create", extensions=[{"name": "e"}], profile={"id": "p"}, **wish)
    assert (pool.region, pool.extension_ids, pool.profile_id) == ("us-east", ["e"], "p"), pool
    assert call("browser_pools.retrieve", pool.id) == pool
    assert [one.id for one in call("browser_pools.list", query="by-py")] == [pool.id]
    changed = call("browser_pools.update", pool.id, size=2, start_url="")
    assert (changed.browser_pool_config.size, changed.browser_pool_config.start_url) == (2, None), changed
    lease = dict(name="lease", tags={"a": "b"}, start_url="https://b.example/", acquire_timeout_seconds=1)
    lent = call("browser_pools.acquire", pool.id, **lease)
    assert (lent.pool.id, lent.name, lent.tags, lent.start_url) == (pool.id, "lease", {"a": "b"}, lease["start_url"])
    call("browser_pools.release", "pool-by-python", session_id=lent.session_id)
    call("browser_pools.flush", pool.id)
    refused(404, "browsers.retrieve", lent.session_id)
    call("browser_pools.acquire", pool.id)
    call("browser_pools.update", pool.id, size=1)
    assert call("browser_pools.acquire", pool.id, acquire_timeout_seconds=0) is None
    refused(409, "browser_pools.delete", pool.id)
    call("browser_pools.delete", pool.id, force=True)


def expect_501(name, session):
    """Calls a method that is not served, with arguments that say nothing."""
    method = strict
    for part in name.split("."):
        method = getattr(method, part)
    args = {}
    for parameter in inspect.signature(method).parameters.values():
        if parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            args[parameter.name] = "x"
    # The VM answers what the SDK sends to a session's VM.
    args.update({key: session for key in ("id", "id_or_name") if key in args and name.startswith("browsers.")})
    special = {"extensions": [{"name": "x", "zip_file": b"x"}], "file": b"x", "to": io.BytesIO()}
    args.update({key: value for key, value in special.items() if key in args})
    if name == "audit_logs.download":
        args.update(start="2026-01-01T00:00:00Z", end="2026-01-02T00:00:00Z")
    try:
        method(**args)
        raise AssertionError(f"{name} is served")
    except kernel.APIStatusError as error:
        assert error.status_code == 501, (name, error)
        request = error.request
        assert error.response.json()["message"].endswith(f" {request.method} {request.url.path}"), error


def drive_fallback():
    """A stale token: the SDK drops it, and goes through the API."""
    for name in ("old", "refused"):
        if name == "old":
            sandbox("POST", "faults", {"call": "create", "token_seconds": 60})
        # A client of its own: with several sessions at one address, the SDK cannot tell whose
        # token is stale.
        patient = client(max_retries=2)
        session = patient.browsers.create(name=name, timeout_seconds=3600).session_id
        if name == "old":
            sandbox("POST", "clock", {"advance_seconds": 61})
        else:
            sandbox("POST", "faults", {"call": "file_info", "status": 403})
        del sent[:]
        for _ in range(2):
            assert patient.browsers.fs.file_info(session, path="/tmp").is_dir
        statuses = [(one.request.url.path.split("/")[1], one.status_code) for one in sent]
        stale = 401 if name == "old" else 403
        assert statuses == [("browser", stale), ("browsers", 200), ("browsers", 200)], statuses
        patient.browsers.delete_by_id(session)


session, others = drive_browsers()
drive_process(session)
drive_files(session)
drive_computer(session)
drive_curl(session)
drive_pools()

not_served = {
    f"{resource}.{name}" for resource, names in re.findall(r"(\S+): (.*)", NOT_SERVED) for name in names.split()
}
for name in sorted(not_served):
    expect_501(name, session)

for request in (response.request for response in sent):
    path = request.url.path
    is_direct = path.startswith("/browser/kernel/")
    # The SDK has no other way for `curl/raw`.
    assert is_direct == (path.endswith("/curl/raw") or WAY == "vm" and bool(IN_VM.search(path))), request
    assert ("authorization" in request.headers) != is_direct, request
if WAY == "vm":
    drive_fallback()

for one in [session, *others]:
    call("browsers.delete_by_id", one)
assert list(call("browsers.list")) == []
try:
    kernel.Kernel(api_key="wrong").browsers.list()
    raise AssertionError("it was let in")
except kernel.AuthenticationError:
    pass

known = set(methods(strict))
assert called.isdisjoint(not_served), called & not_served
assert known == called | not_served, known ^ (called | not_served)
print(f"python: {len(called)} right, {len(not_served)} answered 501")
