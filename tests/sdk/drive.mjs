// Drives the platform named by the environment with the official Node SDK.

import assert from "node:assert/strict";
import Kernel, { AuthenticationError, BadRequestError, NotFoundError, toFile } from "@onkernel/sdk";

const client = new Kernel();

const browser = await client.browsers.create({ name: "by-node", headless: true, timeout_seconds: 120 });
const session = browser.session_id;
assert.equal(browser.timeout_seconds, 120);
assert.equal((await client.browsers.retrieve("by-node")).session_id, session);

// More sessions than a page, so that the SDK must request another one.
const others = [];
for (let count = 0; count < 2; count += 1) others.push((await client.browsers.create()).session_id);
const listed = [];
for await (const one of client.browsers.list({ limit: 1 })) listed.push(one.session_id);
assert.deepEqual(listed, [session, ...others]);

const process = client.browsers.process;
const ran = await process.exec(session, { command: "/bin/sh", args: ["-c", "echo out; exit 5"] });
assert.deepEqual([ran.exit_code, Buffer.from(ran.stdout_b64, "base64").toString()], [5, "out\n"]);
await assert.rejects(process.exec(session, { command: "/no/such/program" }), BadRequestError);

const spawned = await process.spawn(session, { command: "echo", args: ["spawned"] });
const events = [];
for await (const event of await process.stdoutStream(spawned.process_id, { id: session })) events.push(event);
assert.equal(Buffer.from(events[0].data_b64, "base64").toString(), "spawned\n");
assert.deepEqual(events.at(-1), { event: "exit", exit_code: 0 });

const fs = client.browsers.fs;
const content = Buffer.alloc(1 << 20, "some text. ");
await fs.createDirectory(session, { path: "/tmp/new" });
assert.equal(await fs.listFiles(session, { path: "/tmp/new" }), null);
await fs.writeFile(session, content, { path: "/tmp/new/a b" });
const read = await (await fs.readFile(session, { path: "/tmp/new/a b" })).arrayBuffer();
assert.ok(content.equals(Buffer.from(read)));
const [entry, ...rest] = await fs.listFiles(session, { path: "/tmp/new" });
assert.deepEqual([entry.name, entry.size_bytes, rest], ["a b", content.length, []]);
await fs.deleteFile(session, { path: "/tmp/new/a b" });
await assert.rejects(fs.readFile(session, { path: "/tmp/new/a b" }), NotFoundError);

const file = await toFile(content, "a");
await fs.upload(session, { files: [{ dest_path: "/tmp/up/a", file }, { dest_path: "/tmp/up/b", file }] });
for (const name of ["a", "b"]) {
  const there = await (await fs.readFile(session, { path: `/tmp/up/${name}` })).arrayBuffer();
  assert.ok(content.equals(Buffer.from(there)));
}
const packed = await (await fs.downloadDirZip(session, { path: "/tmp/up" })).arrayBuffer();
await fs.uploadZip(session, { dest_path: "/tmp/unpacked", zip_file: await toFile(packed, "up.zip") });
assert.deepEqual((await fs.listFiles(session, { path: "/tmp/unpacked" })).map((one) => one.name), ["a", "b"]);

for (const one of [session, ...others]) await client.browsers.deleteByID(one);
await assert.rejects(client.browsers.retrieve(session), NotFoundError);
await assert.rejects(new Kernel({ apiKey: "wrong" }).browsers.list(), AuthenticationError);

console.log("all is well");
