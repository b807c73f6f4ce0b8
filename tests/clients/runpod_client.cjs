// Runs Runpod's JavaScript client in its own process: makes every call and prints the results. The base URL is
// its argument; the inputs are read as JSON from standard input. The Python counterpart is runpod_client.py.

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
  const result = { health: await endpoint.health() };
  result.runSync = await endpoint.runSync({ input: inputs.plain, timeout: 60000 });
  const slow = await endpoint.runSync({ input: inputs.slow }, 1500);
  result.runSyncSlow = slow;
  const job = await endpoint.run({ input: inputs.plain, policy: { ttl: 60000 } });
  result.run = job;
  result.statusSync = await endpoint.statusSync(job.id, 20000);
  result.status = await endpoint.status(job.id);
  const streaming = await endpoint.run({ input: inputs.stream });
  result.stream = [];
  for await (const piece of endpoint.stream(streaming.id)) result.stream.push(piece);
  const long = await endpoint.run({ input: inputs.long });
  result.cancel = await endpoint.cancel(long.id);
  result.cancelledStream = [];
  for await (const piece of endpoint.stream(long.id)) result.cancelledStream.push(piece);
  result.purge = await endpoint.purgeQueue();
  try {
    await endpoint.status("nonsense");
  } catch (error) {
    result.nonsense = error.message;
  }
  print("RESULT " + JSON.stringify(result));
}

main();
