// OpenAI's client for Node in a process of its own: it reads calls, a line each, and prints what their caller was told.
// The Python twin is openai_client.py.

const readline = require("node:readline");
const { OpenAI, APIError } = require("openai");
const { VERSION } = require("openai/version");

async function call(client, asked, told) {
  const options = { timeout: asked.timeout * 1000 };
  const request = { ...asked.request, ...asked.extra };
  const answer = await client.chat.completions.create(request, options);
  if (!request.stream) {
    const [choice] = answer.choices;
    told.text = choice.message.content;
    told.finish = choice.finish_reason;
    told.tokens = answer.usage.completion_tokens;
    return;
  }
  for await (const chunk of answer) {
    hear(told, chunk);
    if (asked.leaves && told.text) answer.controller.abort();
  }
}

function hear(told, chunk) {
  told.events = (told.events ?? 0) + 1;
  for (const choice of chunk.choices) {
    told.text += choice.delta.content ?? "";
    told.finish = choice.finish_reason;
  }
  if (chunk.usage) told.tokens = chunk.usage.completion_tokens;
}

async function main() {
  const clients = {}; // kept, as an application would: a call must not spoil the next one
  console.log(VERSION);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    const url = asked.base_url;
    clients[url] ??= new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
    const told = { text: "" };
    try {
      await call(clients[url], asked, told);
    } catch (error) {
      if (!(error instanceof APIError)) throw error;
      Object.assign(told, { error: error.constructor.name, says: error.message, status: error.status, code: error.code });
    }
    console.log(JSON.stringify(told));
  }
}

main();
