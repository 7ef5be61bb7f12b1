// Drives the platform named by the environment with the official Node SDK.
//
// The argument is the way of the calls to a VM: `vm` or `api`. Every method of the SDK is either
// called and its answer checked against the SDK's declared types, or listed as not served. Prints
// the number of methods of each kind.

import assert from "node:assert/strict";
import { File } from "node:buffer";
import { createRequire } from "node:module";
import path from "node:path";

import Kernel, { APIError, AuthenticationError, toFile } from "@onkernel/sdk";

import { Types } from "./types.mjs";

const WAY = process.argv[2];

// Node 18 has it under its module's name only.
globalThis.File ??= File;

// The methods that the emulator does not serve. Each answers 501.
const NOT_SERVED = `
apiKeys: create delete list retrieve rotate update
apps: list
auditLogs: download exportChunk list
auth.connections: create delete follow list login retrieve submit timeline update
browsers: loadExtensions
browsers.playwright: execute
browsers.replays: download list start stop
browsers.telemetry: events stream
credentialProviders: create delete list listItems retrieve test update
credentials: create delete list retrieve totpCode update
deployments: create delete follow list retrieve
extensions: delete download downloadFromChromeStore get list upload
invocations: create deleteBrowsers follow list listBrowsers retrieve update
organization.limits: retrieve update
profiles: create delete download list retrieve update
projects: create delete list retrieve update
projects.limits: retrieve update
proxies: check create delete list retrieve update
`;

// The declarations of the resources that are served.
const DECLARATIONS = {
  browsers: "resources/browsers/browsers.d.mts",
  "browsers.computer": "resources/browsers/computer.d.mts",
  "browsers.fs": "resources/browsers/fs/fs.d.mts",
  "browsers.fs.watch": "resources/browsers/fs/watch.d.mts",
  "browsers.logs": "resources/browsers/logs.d.mts",
  "browsers.process": "resources/browsers/process.d.mts",
  browserPools: "resources/browser-pools.d.mts",
};
const types = new Types(path.dirname(createRequire(import.meta.url).resolve("@onkernel/sdk")));

// Subresources of a session that the requests of this way lead to the VM.
const inVm = (process.env.KERNEL_BROWSER_ROUTING_SUBRESOURCES ?? "curl,telemetry/stream").split(",");

const sent = [];
const client = new Kernel({
  maxRetries: 0,
  fetch: (input, init) => {
    const url = new URL(input instanceof Request ? input.url : input);
    // The SDK also fetches a `data:` URL, to find out what `fetch` can do.
    if (url.protocol === "http:") sent.push({ url, headers: new Headers(init?.headers) });
    return fetch(input, init);
  },
});

// Names of the methods of a resource and of the resources in it.
function* methods(resource, prefix) {
  for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(resource)))
    if (name !== "constructor") yield prefix + name;
  for (const [name, value] of resources(resource)) yield* methods(value, `${prefix}${name}.`);
}

const resources = (of) => Object.entries(of).filter(([name, value]) => value?._client && name !== "_client");

const called = new Set();

function method(name) {
  const parts = name.split(".");
  const last = parts.pop();
  const resource = parts.reduce((value, part) => value[part], client);
  return { resource, last, place: parts.join("."), call: (...args) => resource[last](...args) };
}

// Calls a method by its name, and checks its answer: one value, all entries of a list, or a
// stream.
async function call(name, ...args) {
  called.add(name);
  const { call, last, place } = method(name);
  const check = (value) => types.check(value, DECLARATIONS[place], last);
  const promise = call(...args);
  if (last === "list") {
    const listed = [];
    for await (const one of promise) {
      check(one);
      listed.push(one);
    }
    return listed;
  }
  const answer = await promise;
  if (answer?.[Symbol.asyncIterator]) {
    return (async function* () {
      for await (const event of answer) {
        check(event);
        yield event;
      }
    })();
  }
  if (!(answer instanceof Response)) check(answer);
  return answer;
}

async function refused(status, name, ...args) {
  await assert.rejects(call(name, ...args), (error) => error instanceof APIError && error.status === status);
}

const bytes = async (answer) => Buffer.from(await (await answer).arrayBuffer());

async function collected(stream) {
  const events = [];
  for await (const event of await stream) events.push(event);
  return events;
}

// The check itself: it finds what is missing or of a wrong type, at any depth.
function driveTypes(browser) {
  const problem = (change) => {
    const { session_id: id, ...others } = browser;
    const changed = change === null ? others : { ...browser, ...change };
    assert.throws(() => types.check(changed, DECLARATIONS.browsers, "retrieve"), { message: /^retrieve\.\S+ is / });
  };
  problem(null);
  problem({ timeout_seconds: "60" });
  problem({ name: null });
  problem({ usage: {} });
  problem({ viewport: { width: 1 } });
  problem({ tags: { a: 1 } });
}

async function driveBrowsers() {
  const wish = {
    name: "by-node", headless: true, timeout_seconds: 120, kiosk_mode: true, start_url: "https://a.example/",
    viewport: { width: 800, height: 600 }, tags: { by: "node" }, proxy_id: "p", chrome_policy: { A: 1 },
  };
  const telemetry = { enabled: true };
  const browser = await call("browsers.create", { ...wish, telemetry, profile: { name: "work", save_changes: true } });
  const session = browser.session_id;
  const found = await call("browsers.retrieve", "by-node");
  for (const [name, value] of Object.entries(wish)) assert.deepEqual(found[name], value, name);
  assert.equal(found.profile.name, "work");
  driveTypes(found);
  const changed = await call("browsers.update", session, { tags: {}, start_url: "https://b.example/" });
  assert.deepEqual([changed.tags, changed.start_url], [{}, "https://b.example/"]);
  await refused(400, "browsers.update", session, { timeout_seconds: 60 });
  // More sessions than a page, so that the SDK must request another one.
  const others = [];
  for (let count = 0; count < 2; count += 1) others.push((await call("browsers.create")).session_id);
  const ids = async (filters) => (await call("browsers.list", filters)).map((one) => one.session_id);
  assert.deepEqual(await ids({ limit: 1 }), [session, ...others]);
  assert.deepEqual(await ids({ query: "NODE" }), [session]);
  await call("browsers.deleteByID", others.pop());
  await assert.rejects(client.browsers.retrieve("none"), { status: 404 });
  assert.equal((await ids({ status: "deleted" })).length, 1);
  return [session, ...others];
}

async function driveProcess(session) {
  const ran = await call("browsers.process.exec", session, { command: "/bin/sh", args: ["-c", "echo out; exit 5"] });
  assert.deepEqual([ran.exit_code, Buffer.from(ran.stdout_b64, "base64").toString()], [5, "out\n"]);
  await refused(400, "browsers.process.exec", session, { command: "/no/such/program" });

  const at = { id: session };
  const spawn = async (...args) =>
    (await call("browsers.process.spawn", session, { command: "sh", args: ["-c", ...args], allocate_tty: true })).process_id;
  const shell = await spawn("read a; stty size");
  assert.equal((await call("browsers.process.status", shell, at)).state, "running");
  assert.ok((await call("browsers.process.resize", shell, { ...at, rows: 6, cols: 77 })).ok);
  await call("browsers.process.stdin", shell, { ...at, data_b64: Buffer.from("\r").toString("base64") });
  const events = await collected(call("browsers.process.stdoutStream", shell, at));
  assert.match(events.slice(0, -1).map((one) => Buffer.from(one.data_b64, "base64").toString()).join(""), /6 77\r\n$/);
  assert.deepEqual(events.at(-1), { event: "exit", exit_code: 0 });
  assert.ok((await call("browsers.process.kill", await spawn("sleep 1000"), { ...at, signal: "KILL" })).ok);
}

async function driveFiles(session) {
  const content = Buffer.alloc(1 << 20, "some text. ");
  const at = (path) => ({ path });
  await call("browsers.fs.createDirectory", session, at("/tmp/new"));
  // An empty directory is null, which the SDK's own type does not allow.
  assert.equal(await client.browsers.fs.listFiles(session, at("/tmp/new")), null);
  await call("browsers.fs.writeFile", session, content, at("/tmp/new/a b"));
  assert.ok(content.equals(await bytes(call("browsers.fs.readFile", session, at("/tmp/new/a b")))));
  const [entry, ...rest] = await call("browsers.fs.listFiles", session, at("/tmp/new"));
  assert.deepEqual([entry.name, entry.size_bytes, rest], ["a b", content.length, []]);
  await call("browsers.fs.move", session, { src_path: "/tmp/new/a b", dest_path: "/tmp/new/c" });
  await call("browsers.fs.setFilePermissions", session, { path: "/tmp/new/c", mode: "0755" });
  assert.equal((await call("browsers.fs.fileInfo", session, at("/tmp/new/c"))).mode, "-rwxr-xr-x");

  const { watch_id: watch } = await call("browsers.fs.watch.start", session, at("/tmp/new"));
  const events = await call("browsers.fs.watch.events", watch, { id: session });
  await call("browsers.fs.deleteFile", session, at("/tmp/new/c"));
  const { value: event } = await events.next();
  assert.deepEqual(event, { type: "DELETE", path: "/tmp/new/c", name: "c", is_dir: false });
  await call("browsers.fs.watch.stop", watch, { id: session });
  assert.ok((await events.next()).done);

  await call("browsers.fs.writeFile", session, Buffer.from("one\ntwo\n"), at("/tmp/new/log"));
  const lines = await call("browsers.logs.stream", session, { source: "path", path: "/tmp/new/log", follow: false });
  for (const message of ["one", "two"]) assert.equal((await lines.next()).value.message, message);
  await lines.return();

  await call("browsers.fs.deleteDirectory", session, at("/tmp/new"));
  await refused(404, "browsers.fs.readFile", session, at("/tmp/new"));
  await refused(400, "browsers.fs.readFile", session, at("tmp"));

  const file = await toFile(content, "a");
  await call("browsers.fs.upload", session, { files: [{ dest_path: "/tmp/up/a", file }, { dest_path: "/tmp/up/b", file }] });
  for (const name of ["a", "b"])
    assert.ok(content.equals(await bytes(call("browsers.fs.readFile", session, at(`/tmp/up/${name}`)))));
  const packed = await bytes(call("browsers.fs.downloadDirZip", session, at("/tmp/up")));
  const zip = { dest_path: "/tmp/unpacked", zip_file: await toFile(packed, "up.zip") };
  await call("browsers.fs.uploadZip", session, zip);
  const unpacked = await call("browsers.fs.listFiles", session, at("/tmp/unpacked"));
  assert.deepEqual(unpacked.map((one) => one.name), ["a", "b"]);
}

async function driveComputer(session) {
  await call("browsers.computer.batch", session, { actions: [{ type: "sleep", sleep: { duration_ms: 1 } }] });
  await call("browsers.computer.moveMouse", session, { x: 1, y: 2 });
  await call("browsers.computer.clickMouse", session, { x: 3, y: 4 });
  await call("browsers.computer.scroll", session, { x: 7, y: 8, delta_y: 3 });
  await call("browsers.computer.dragMouse", session, { path: [[1, 2], [5, 6]] });
  assert.deepEqual(await call("browsers.computer.getMousePosition", session), { x: 5, y: 6 });
  await call("browsers.computer.pressKey", session, { keys: ["Return"] });
  await call("browsers.computer.typeText", session, { text: "text" });
  await call("browsers.computer.setCursorVisibility", session, { hidden: true });
  await call("browsers.computer.writeClipboard", session, { text: "copied" });
  assert.deepEqual(await call("browsers.computer.readClipboard", session), { text: "copied" });
  const image = await bytes(call("browsers.computer.captureScreenshot", session));
  assert.deepEqual([image.readUInt32BE(16), image.readUInt32BE(20)], [800, 600]);
}

async function driveCurl(session) {
  const url = new URL("/_sandbox/clock", client.baseURL).href;
  const answer = await call("browsers.curl", session, { url });
  assert.deepEqual([answer.status, answer.headers["content-type"]], [200, ["application/json"]]);
  const body = JSON.stringify({ advance_seconds: 0 });
  const raw = await call("browsers.fetch", session, url, { method: "POST", body, headers: { "content-type": "text/plain" } });
  assert.ok((await raw.json()).now_seconds > 0);
}

async function drivePools() {
  const wish = { name: "pool-by-node", size: 1, extensions: [{ name: "e" }], profile: { id: "p" } };
  const pool = await call("browserPools.create", wish);
  assert.deepEqual([pool.extension_ids, pool.profile_id], [["e"], "p"]);
  assert.deepEqual(await call("browserPools.retrieve", pool.id), pool);
  assert.deepEqual(await call("browserPools.list", { query: "by-node" }), [pool]);
  assert.equal((await call("browserPools.update", pool.id, { size: 2 })).browser_pool_config.size, 2);
  const lease = { name: "lease", tags: { a: "b" }, start_url: "https://b.example/" };
  const lent = await call("browserPools.acquire", pool.id, lease);
  for (const [name, value] of Object.entries(lease)) assert.deepEqual(lent[name], value);
  await call("browserPools.release", "pool-by-node", { session_id: lent.session_id });
  await call("browserPools.flush", pool.id);
  await call("browserPools.delete", pool.id);
}

// Calls a method that is not served, with arguments that say nothing.
async function expect501(name, session) {
  const { resource, last, call } = method(name);
  const x = { id: session, path: "/x", source: "path" };
  const parameters = resource[last].toString().match(/\((.*?)\)/)[1].split(", ").map((one) => one.split(" ")[0]);
  const args = parameters.filter((one) => one !== "options").map((one) => {
    if (/id|ID/.test(one)) return name.startsWith("browsers.") ? session : "x";
    return x;
  });
  if (name === "auditLogs.download")
    args.splice(0, 2, { start: "2026-01-01T00:00:00Z", end: "2026-01-02T00:00:00Z" }, { write() {} });
  await assert.rejects(
    async () => call(...args),
    (error) => error.status === 501 && error.message.includes(sent.at(-1).url.pathname),
    name,
  );
}

const [session, ...others] = await driveBrowsers();
await driveProcess(session);
await driveFiles(session);
await driveComputer(session);
await driveCurl(session);
await drivePools();

const listed = [...NOT_SERVED.matchAll(/(\S+): (.*)/g)];
const notServed = new Set(listed.flatMap(([, place, names]) => names.split(" ").map((name) => `${place}.${name}`)));
for (const name of notServed) await expect501(name, session);

for (const { url, headers } of sent) {
  const [direct, id, ...rest] = url.pathname.split("/").slice(1);
  const isDirect = direct === "browser";
  const tail = rest.join("/");
  const leads = direct === "browsers" && id !== "none" && inVm.some((one) => tail === one || tail.startsWith(`${one}/`));
  assert.ok(!leads, `${url} did not go to the VM`);
  assert.notEqual(headers.has("authorization"), isDirect, `${url}`);
}
const vmCalls = sent.filter(({ url }) => /^\/browser\/kernel\/(process|fs|computer)\//.test(url.pathname)).length;
assert.equal(vmCalls > 0, WAY === "vm");

for (const one of [session, ...others]) await call("browsers.deleteByID", one);
assert.deepEqual(await call("browsers.list"), []);
await assert.rejects(new Kernel({ apiKey: "wrong" }).browsers.list(), AuthenticationError);

const known = new Set(resources(client).flatMap(([name, value]) => [...methods(value, `${name}.`)]));
assert.deepEqual([...called].filter((name) => notServed.has(name)), []);
assert.deepEqual([...called, ...notServed].sort(), [...known].sort());
console.log(`node: ${called.size} right, ${notServed.size} answered 501`);
