// What the official client for Node must be able to do with this server. Run by tests/test_sdk.py, in a folder that has
// it installed. Argument: the servers' URLs by name, as JSON.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.cwd(), "x.js"));
const { OpenAI } = require("openai");

const urls = JSON.parse(process.argv[2]);
const model = "tiny/bytes";
const messages = [{ role: "user", content: "hi" }];
const hello = "Hello, world!";
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

const client = (server = "plain", options = {}) =>
  new OpenAI({ baseURL: `${urls[server]}/v1`, apiKey: "sk-a", maxRetries: 0, timeout: 20_000, ...options });

async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const checks = {
  async models() {
    assert.deepEqual((await collect(client().models.list())).map((one) => one.id), [model]);
    assert.equal((await client().models.retrieve(model)).id, model);
  },
  async chats() {
    const answer = await client().chat.completions.create({ model, messages });
    assert.equal(answer.choices[0].message.content, hello);
    const chunks = await collect(await client().chat.completions.create({ model, messages, stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), hello);
    const final = await client().chat.completions.stream({ model, messages }).finalChatCompletion();
    assert.equal(final.choices[0].message.content, hello);
  },
  async toolCalls() {
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const final = await client("tools").chat.completions.stream({ model, messages, tools }).finalChatCompletion();
    assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });
  },
  async completions() {
    const chunks = await collect(await client().completions.create({ model, prompt: "x", stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), hello);
  },
  async responses() {
    const first = await client().responses.create({ model, input: "hi" });
    assert.equal(first.output_text, hello);
    const final = await client().responses.stream({ model, input: "on", previous_response_id: first.id }).finalResponse();
    assert.equal(final.output_text, hello);
    assert.equal((await client().responses.retrieve(first.id)).output_text, hello);
    assert.equal((await collect(client().responses.inputItems.list(first.id))).length, 1);
    await client().responses.delete(first.id);
    await assert.rejects(client().responses.retrieve(first.id), OpenAI.NotFoundError);
  },
  async errors() {
    const ask = (server, options = {}) => client(server).chat.completions.create({ model, messages, ...options });
    await assert.rejects(ask("plain", { temperature: 3 }), OpenAI.BadRequestError);
    await assert.rejects(ask("plain", { model: "x" }), OpenAI.NotFoundError);
    await assert.rejects(ask("full"), OpenAI.RateLimitError);
    await assert.rejects(ask("loading"), OpenAI.InternalServerError);
    await assert.rejects(client("keys", { apiKey: "sk-wrong" }).models.list(), OpenAI.AuthenticationError);
    await assert.rejects(collect(await ask("failing", { stream: true })), OpenAI.APIError);
    await assert.rejects(ask("nowhere"), OpenAI.APIConnectionError);
  },
  async timeouts() {
    const hasty = client("slow", { timeout: 300 });
    await assert.rejects(hasty.completions.create({ model, prompt: "x" }), OpenAI.APIConnectionTimeoutError);
  },
  async cancelInTheMiddle() {
    const endless = { model, prompt: "x", stream: true, max_tokens: 10 ** 6 };
    for await (const _ of await client("endless").completions.create(endless)) break;
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`openai for node: ${name}`);
}
