// Runpod's JavaScript client in a process of its own: it makes every call and prints what it was told. The base URL is
// its argument, the inputs come as JSON on standard input. The Python twin is runpod_client.py.

const fs = require("node:fs");
const path = require("node:path");
const { pathToFileURL } = require("node:url");

async function main() {
  const inputs = JSON.parse(fs.readFileSync(0, "utf8"));
  const root = path.join(process.env.NODE_PATH, "runpod-sdk", "dist", "src", "index.js");
  const { default: runpodSdk } = await import(pathToFileURL(root));
  const print = console.log;
  console.log = () => {}; // the SDK prints a line for every poll
  const endpoint = runpodSdk("one", { baseUrl: process.argv[2] }).endpoint("default");
  const told = { health: await endpoint.health() };
  told.runSync = await endpoint.runSync({ input: inputs.plain, timeout: 60000 });
  const slow = await endpoint.runSync({ input: inputs.slow }, 1500);
  told.runSyncSlow = slow;
  const job = await endpoint.run({ input: inputs.plain, policy: { ttl: 60000 } });
  told.run = job;
  told.statusSync = await endpoint.statusSync(job.id, 20000);
  told.status = await endpoint.status(job.id);
  const streaming = await endpoint.run({ input: inputs.stream });
  told.stream = [];
  for await (const piece of endpoint.stream(streaming.id)) told.stream.push(piece);
  const long = await endpoint.run({ input: inputs.long });
  told.cancel = await endpoint.cancel(long.id);
  told.cancelledStream = [];
  for await (const piece of endpoint.stream(long.id)) told.cancelledStream.push(piece);
  told.purge = await endpoint.purgeQueue();
  try {
    await endpoint.status("nonsense");
  } catch (error) {
    told.nonsense = error.message;
  }
  print("TOLD " + JSON.stringify(told));
}

main();
