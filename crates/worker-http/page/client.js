// Talking to the worker: its state, and answers as they are made. Paths are relative, so that the page also works where a
// proxy serves it below a path of its own.

const KEY = "api-key";

/** What went wrong, in words for whoever sits at the page. */
export class WorkerError extends Error {
  constructor(message, { status, code, param } = {}) {
    super(message);
    Object.assign(this, { status, code, param });
  }

  /** The chat route says so, and nothing else does: only the GGUF knows whether it has a template. */
  get lacksChatTemplate() {
    return this.code === "unsupported_parameter" && this.param === "messages";
  }
}

/** The API key, for as long as the tab is open. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value.trim()),
};

/** What `GET /health` says, or null where nobody answers. It has a body also where its status is 503. */
export async function health() {
  try {
    return await (await fetch("health", { cache: "no-store" })).json();
  } catch {
    return null;
  }
}

/**
 * Yields an answer's `{ text, finish, usage }` piece by piece: what has arrived together is one piece, since times within
 * it would mean nothing. Usage comes with every piece, so that it is known of an answer that is stopped too. Aborting the
 * signal ends the request, and with it the job in the worker.
 */
export async function* answer(path, request, signal) {
  const stream_options = { include_usage: true, continuous_usage_stats: true };
  const response = await post(path, { ...request, stream: true, stream_options }, signal);
  for await (const arrived of events(response.body)) {
    const piece = { text: "" };
    let failure = null;
    for (const data of arrived.filter((data) => data !== "[DONE]")) {
      const { choices, usage, error } = JSON.parse(data);
      failure ??= error && new WorkerError(sentence(error.message), error);
      const choice = choices?.[0];
      piece.text += choice?.delta?.content ?? choice?.text ?? "";
      piece.finish = choice?.finish_reason ?? piece.finish;
      piece.usage = usage ?? piece.usage;
    }
    // What was written before it failed stays.
    yield piece;
    if (failure) throw failure;
    if (arrived.includes("[DONE]")) return;
  }
  throw new WorkerError("The connection ended before the answer did.");
}

async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new WorkerError("The worker does not answer. It may have been stopped, or the connection to it is lost.");
  }
  if (response.ok) return response;
  const { status } = response;
  const { error } = await response.json().catch(() => ({}));
  throw new WorkerError(inWords(status, error?.message), { ...error, status });
}

function inWords(status, message = `it answered with status ${status}`) {
  switch (status) {
    case 401: return "This worker wants an API key.";
    case 429: return `The worker has as much to do as it takes: ${message}. Try again in a moment.`;
    case 503: return `The worker takes no work now: ${message}.`;
    default: return sentence(message);
  }
}

function sentence(message) {
  return `${message[0].toUpperCase()}${message.slice(1).replace(/\.$/, "")}.`;
}

/** The data of server-sent events, in lists of those that arrive together. The worker writes each on one line. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new WorkerError("The connection to the worker was lost.");
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice("data: ".length));
  }
}
