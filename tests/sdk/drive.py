"""Drives the platform named by the environment with the official Python SDK."""

import base64
import io
import zipfile

import kernel

client = kernel.Kernel()


def said(answer):
    """What an exec answered: its code and its standard output."""
    return answer.exit_code, base64.b64decode(answer.stdout_b64 or "").decode()


browser = client.browsers.create(name="by-python", headless=True, timeout_seconds=120)
assert browser.cdp_ws_url.startswith("ws://") and browser.timeout_seconds == 120, browser
session = browser.session_id
assert client.browsers.retrieve("by-python").session_id == session

# More sessions than a page, so that the SDK must request another one.
others = [client.browsers.create().session_id for _ in range(2)]
listed = [one.session_id for one in client.browsers.list(limit=1)]
assert listed == [session, *others], listed

process = client.browsers.process
assert said(process.exec(session, command="echo", args=["$HOME"])) == (0, "$HOME\n")
assert said(process.exec(session, command="/bin/sh", args=["-c", "exit 5"], as_root=True)) == (5, "")
try:
    process.exec(session, command="/no/such/program")
    raise AssertionError("it was run")
except kernel.BadRequestError as error:
    assert "no such file or directory" in str(error), error

spawned = process.spawn(session, command="/bin/sh", args=["-c", "read line; echo got $line"])
assert process.status(spawned.process_id, id_or_name=session).state == "running"
process.stdin(spawned.process_id, id_or_name=session, data_b64=base64.b64encode(b"it\n").decode())
events = list(process.stdout_stream(spawned.process_id, id_or_name=session))
assert base64.b64decode(events[0].data_b64) == b"got it\n", events
assert events[-1].event == "exit" and events[-1].exit_code == 0, events

shell = process.spawn(session, command="sh", args=["-c", "stty size; read a; stty size"], allocate_tty=True, rows=5, cols=66)
assert process.resize(shell.process_id, id_or_name=session, rows=6, cols=77).ok
process.stdin(shell.process_id, id_or_name=session, data_b64=base64.b64encode(b"\r").decode())
events = list(process.stdout_stream(shell.process_id, id_or_name=session))
said = b"".join(base64.b64decode(event.data_b64) for event in events[:-1])
assert said.endswith(b"6 77\r\n"), said
assert events[-1].exit_code == 0, events

fs = client.browsers.fs
content = bytes(range(256)) * 4096
fs.create_directory(session, path="/tmp/new")
assert not fs.list_files(session, path="/tmp/new")
fs.write_file(session, content, path="/tmp/new/a b", mode="600")
assert fs.read_file(session, path="/tmp/new/a b").read() == content
(entry,) = fs.list_files(session, path="/tmp/new")
assert (entry.name, entry.size_bytes, entry.is_dir, entry.mode) == ("a b", len(content), False, "-rw-------"), entry
fs.move(session, src_path="/tmp/new/a b", dest_path="/tmp/new/c")
fs.set_file_permissions(session, path="/tmp/new/c", mode="0755")
assert fs.file_info(session, path="/tmp/new/c").mode == "-rwxr-xr-x"
fs.delete_file(session, path="/tmp/new/c")
fs.delete_directory(session, path="/tmp/new")
try:
    fs.file_info(session, path="/tmp/new")
    raise AssertionError("it is still there")
except kernel.NotFoundError:
    pass

pairs = [{"file": content, "dest_path": "/tmp/up/a"}, {"file": b"b", "dest_path": "/tmp/up/sub/b"}]
fs.upload(session, files=pairs)
assert fs.read_file(session, path="/tmp/up/a").read() == content
with zipfile.ZipFile(io.BytesIO(fs.download_dir_zip(session, path="/tmp/up").read())) as packed:
    assert packed.testzip() is None and packed.namelist() == ["a", "sub/", "sub/b"], packed.namelist()
made = io.BytesIO()
with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
    packed.writestr("deep/ä", content)
fs.upload_zip(session, dest_path="/tmp/unpacked", zip_file=made.getvalue())
assert fs.read_file(session, path="/tmp/unpacked/deep/ä").read() == content

client.browsers.computer.batch(session, actions=[{"type": "sleep", "sleep": {"duration_ms": 1}}])

pool = client.browser_pools.create(name="pool-by-python", size=1)
lent = client.browser_pools.acquire(pool.id, acquire_timeout_seconds=1)
assert lent.pool and lent.pool.id == pool.id, lent
client.browser_pools.release("pool-by-python", session_id=lent.session_id, reuse=False)

for one in [session, *others]:
    client.browsers.delete_by_id(one)
assert list(client.browsers.list()) == []
try:
    client.browsers.retrieve(session)
    raise AssertionError("it is still there")
except kernel.NotFoundError:
    pass
try:
    kernel.Kernel(api_key="wrong").browsers.list()
    raise AssertionError("it was let in")
except kernel.AuthenticationError:
    pass

print("all is well")
