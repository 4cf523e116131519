"""The official openai package of PyPI against /v1 of a node; the token is in CLAWMATRIX_TOKEN."""

import os
import sys
import time

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=os.environ["CLAWMATRIX_TOKEN"], max_retries=0, timeout=30)
MODEL = "office-01/mock-1"


def ask(content, **more):
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}], **more)


def text(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


assert MODEL in [m.id for m in client.models.list()]
whole = ask("from python")
assert whole.choices[0].message.content == "echo: from python (end of echo)", whole
assert whole.usage.total_tokens == 18
print("answer in one piece: ok")

chunks = list(ask("from python", stream=True, stream_options={"include_usage": True}))
assert text(chunks) == "echo: from python (end of echo)", chunks
assert chunks[-1].usage.total_tokens == 18
print("stream with usage: ok")

tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
calls = ask('[[tool:weather {"city":"Turin"}]]', tools=tools).choices[0].message.tool_calls
assert calls[0].function.arguments == '{"city":"Turin"}', calls
print("tool call: ok")

for prompt, kind in [("[[status 429]]", openai.RateLimitError), ("[[status 400]]", openai.BadRequestError), ("[[status 500]]", openai.InternalServerError)]:
    try:
        ask(prompt)
        raise SystemExit(f"{prompt}: no error")
    except kind:
        pass
try:
    list(ask("a b c [[cut]]", stream=True))
    raise SystemExit("a stream that was cut ended like a whole one")
except openai.APIError as error:
    print(f"cut stream: {type(error).__name__}: {error}")
try:
    client.chat.completions.create(model="office-01/nothing", messages=[])
    raise SystemExit("no error for an unknown model")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
print("errors: ok")

assert client.embeddings.create(model=MODEL, input="a").data[0].embedding == [0.25, -0.5, 1.0]
print("embeddings: ok")

stream = ask("python leaves after two pieces, and a b c d e f g h [[slow 100]]", stream=True)
pieces = 0
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        pieces += 1
    if pieces == 2:
        break
print(f"left {int(time.time() * 1000)}", flush=True)
stream.close()
client.close()
