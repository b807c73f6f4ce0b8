// Runs OpenAI's client for Node in its own process: reads one call per line, prints one result per call.
// The Python counterpart is openai_client.py.

const readline = require("node:readline");
const { OpenAI, APIError } = require("openai");
const { VERSION } = require("openai/version");

async function call(client, asked, result) {
  const options = { timeout: asked.timeout * 1000 };
  const request = { ...asked.request, ...asked.extra };
  const answer = await client.chat.completions.create(request, options);
  if (!request.stream) {
    const [choice] = answer.choices;
    result.text = choice.message.content;
    result.finish = choice.finish_reason;
    result.tokens = answer.usage.completion_tokens;
    return;
  }
  for await (const chunk of answer) {
    noteChunk(result, chunk);
    if (asked.leaves && result.text) answer.controller.abort();
  }
}

// Reads a response with the client's helper, which checks the order of events, or without it.
async function respond(client, asked, result) {
  const { model, input } = asked.request;
  const events = asked.helper ? client.responses.stream({ model, input }) : await client.responses.create(asked.request);
  result.types = [];
  for await (const event of events) {
    if (!result.types.includes(event.type)) result.types.push(event.type);
    if (event.type === "response.output_text.delta") result.text += event.delta;
    if (event.type === "error") result.code = event.code;
    if (event.type === "response.failed") result.failed = { id: event.response.id, code: event.response.error.code };
  }
}

function noteChunk(result, chunk) {
  result.events = (result.events ?? 0) + 1;
  for (const choice of chunk.choices) {
    result.text += choice.delta.content ?? "";
    result.finish = choice.finish_reason;
  }
  if (chunk.usage) result.tokens = chunk.usage.completion_tokens;
}

async function main() {
  const clients = {}; // reused, as in an application: a call must not affect the next one
  console.log(VERSION);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    const url = asked.base_url;
    clients[url] ??= new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
    const result = { text: "" };
    try {
      await (asked.request.input === undefined ? call : respond)(clients[url], asked, result);
    } catch (error) {
      if (!(error instanceof APIError)) throw error;
      Object.assign(result, { error: error.constructor.name, says: error.message, status: error.status, code: error.code });
    }
    console.log(JSON.stringify(result));
  }
}

main();
