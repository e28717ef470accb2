// The page: what is shown, and what its controls do. Text of the model's is only ever put into text nodes.

import { WorkerError, answer, health, key } from "./client.js";

const POLL_MS = { ready: 5000, other: 1000 };
/** Settings that at this value do something that is best said in a word. */
const WORDS = {
  temperature: ["0", "greedy"],
  top_p: ["1", "off"],
  min_p: ["0", "off"],
  repetition_penalty: ["1", "off"],
};
/** How near its end a conversation counts as read to the end, in pixels: it then scrolls along. */
const NEAR_END = 80;

const $ = (selector, from = document) => from.querySelector(selector);
const [text, send, stop, settings, panel] = ["#text", "#send", "#stop", "#settings", "#panel"].map((id) => $(id));

/** An exchange is `{ ask, answer, failed, element }`. What failed is not part of the conversation. */
const modes = {
  chat: {
    path: "v1/chat/completions",
    label: "Message",
    exchanges: [],
    request: (exchange, before) => ({ messages: messages(exchange, before) }),
  },
  prompt: {
    path: "v1/completions",
    label: "Text to continue",
    exchanges: [],
    request: (exchange) => ({ prompt: exchange.ask }),
  },
};

let mode = "chat";
let model = "the model";
/** What aborts the answer in progress; null while there is none. */
let running = null;

function messages(exchange, before) {
  const said = before.filter(({ failed }) => !failed).flatMap(({ ask, answer }) => [
    { role: "user", content: ask },
    { role: "assistant", content: answer },
  ]);
  const system = settings.elements.system.value.trim();
  const instructions = system ? [{ role: "system", content: system }] : [];
  return [...instructions, ...said, { role: "user", content: exchange.ask }];
}

/** The settings by the API's names. A seed is drawn here, so that it can be shown and used again. */
function sampling() {
  const fields = [...new FormData(settings)].filter(([name, value]) => name !== "system" && value !== "");
  const values = Object.fromEntries(fields.map(([name, value]) => [name, Number(value)]));
  values.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  return values;
}

function submit() {
  if (running || text.value.trim() === "") return;
  if (!settings.checkValidity()) {
    panel.open = true;
    settings.reportValidity();
    return;
  }
  const element = $("#exchange").content.firstElementChild.cloneNode(true);
  const exchange = { ask: text.value, element };
  $(".ask h3", element).textContent = mode === "chat" ? "You" : "Prompt";
  $(".answer h3", element).textContent = model;
  $(".ask p", element).textContent = exchange.ask;
  $(".again", element).addEventListener("click", () => run(exchange));
  modes[mode].exchanges.push(exchange);
  $(`#${mode}`).append(element);
  text.value = "";
  fitText();
  run(exchange);
}

/** Asks for an exchange's answer, the last one's of its mode, and shows it as it comes. */
async function run(exchange) {
  if (running) return;
  const { path, request, exchanges } = modes[mode];
  const settings = sampling();
  const shown = document.createTextNode("");
  $(".answer p", exchange.element).replaceChildren(shown);
  $(".error", exchange.element).replaceChildren();
  Object.assign(exchange, { answer: "", failed: false });
  const figures = new Figures($(".figures", exchange.element), settings.seed);
  setRunning(new AbortController());
  showWelcome();
  scrollToEnd();
  let failure = null;
  try {
    const body = { ...request(exchange, exchanges.slice(0, -1)), ...settings };
    for await (const piece of answer(path, body, running.signal)) {
      const follows = isAtEnd();
      exchange.answer += piece.text;
      shown.appendData(piece.text);
      figures.take(piece);
      if (follows) scrollToEnd();
    }
  } catch (error) {
    if (error.name === "AbortError") figures.finish = "stopped";
    else failure = error;
  }
  setRunning(null);
  figures.show();
  if (failure) await showFailure(exchange, failure);
  if (isAtEnd()) scrollToEnd();
}

async function showFailure(exchange, error) {
  exchange.failed = true;
  if (!(error instanceof WorkerError)) console.error(error);
  if (error.status === 401 && await askForKey()) return run(exchange);
  const place = $(".error", exchange.element);
  if (!error.lacksChatTemplate) return place.append(error.message);
  const button = document.createElement("button");
  button.textContent = "Continue it as a plain prompt";
  button.addEventListener("click", () => {
    $("[value=prompt]").click();
    setText(exchange.ask);
  });
  place.append("This model has no chat template, so nobody can say how it wants to be spoken to. ",
    "It can still continue a text. ", button);
}

/** Resolves to whether a key was given. */
function askForKey() {
  const dialog = $("#key-dialog");
  $("#key-refused").hidden = !key.get();
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    const given = dialog.returnValue === "use";
    if (given) key.set($("#key").value);
    $("#key").value = "";
    resolve(given);
  }, { once: true }));
}

/** Counts and times of one answer, in the line below it. */
class Figures {
  finish = null;
  asked = performance.now();

  constructor(element, seed) {
    Object.assign(this, { element, seed });
    element.textContent = "…";
  }

  take({ finish, usage }) {
    this.finish = finish ?? this.finish;
    if (usage && usage.completion_tokens > (this.usage?.completion_tokens ?? 0)) {
      this.last = performance.now();
      this.first ??= { at: this.last, n: usage.completion_tokens };
    }
    this.usage = usage ?? this.usage;
    this.show();
  }

  show() {
    const parts = [];
    const n = this.usage?.completion_tokens ?? 0;
    if (n > 0) {
      parts.push(`${n} token${n === 1 ? "" : "s"} in ${duration(this.last - this.asked)}`);
      parts.push(`first after ${duration(this.first.at - this.asked)}`);
      // From the first on: what comes before is the prompt's time. An answer that arrives at once has no speed.
      if (n > this.first.n) parts.push(`${number((n - this.first.n) / (this.last - this.first.at) * 1000)} tokens/s`);
    }
    if (this.usage) parts.push(`prompt ${this.usage.prompt_tokens}`, `seed ${this.seed}`);
    if (this.finish === "length") parts.push("cut off at the limit");
    if (this.finish === "stopped") parts.push("stopped");
    // Lines break between parts only.
    this.element.textContent = parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
  }
}

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
const duration = (ms) => ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;

function setRunning(controller) {
  const button = controller ? stop : send;
  const had = [send, stop].includes(document.activeElement);
  running = controller;
  document.body.classList.toggle("running", Boolean(running));
  // Readers are told of the answer when it is whole, not of each token.
  $("#conversation").setAttribute("aria-busy", Boolean(running));
  [send.hidden, stop.hidden] = [Boolean(running), !running];
  if (had) button.focus();
}

function isAtEnd() {
  const { scrollTop, clientHeight, scrollHeight } = $("#conversation");
  return scrollHeight - scrollTop - clientHeight < NEAR_END;
}

function scrollToEnd() {
  $("#conversation").scrollTop = $("#conversation").scrollHeight;
}

function setText(value) {
  text.value = value;
  fitText();
  text.focus();
}

/** As high as its text, up to what the style allows. */
function fitText() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + text.offsetHeight - text.clientHeight}px`;
}

function showWelcome() {
  const isEmpty = modes[mode].exchanges.length === 0;
  [$("#welcome").hidden, $("#clear").hidden] = [!isEmpty, isEmpty];
}

function setMode(name) {
  running?.abort();
  mode = name;
  for (const each of Object.keys(modes)) $(`#${each}`).hidden = each !== mode;
  $("label[for=text]").textContent = text.placeholder = modes[mode].label;
  showWelcome();
  scrollToEnd();
}

function showSettings() {
  for (const [name, [special, word]] of Object.entries(WORDS)) {
    const { value } = settings.elements[name];
    $(`output[for=${name}]`).value = value === special ? `${value}, ${word}` : value;
  }
}

function stateOf(health) {
  switch (health?.status) {
    case "ready": {
      const others = health.active_jobs - (running ? 1 : 0);
      return others > 0 ? `ready, ${others} other answer${others === 1 ? "" : "s"}` : "ready";
    }
    case "loading": return `loading ${Math.floor((health.progress ?? 0) * 100)} %`;
    case "draining": return "draining: no new work";
    case "failed": return `failed: ${health.message}`;
    default: return "no answer from the worker";
  }
}

function showHealth(health) {
  const [state, progress] = [$("#state span"), $("#state progress")];
  const words = stateOf(health);
  // Set only when it changes: readers speak it each time.
  if (state.textContent !== words) state.textContent = words;
  $("#state").dataset.status = health?.status ?? "lost";
  progress.hidden = health?.status !== "loading";
  progress.value = health?.progress ?? 0;
  if (!health) return;
  model = health.model;
  document.title = `${model} · worker-orcd`;
  $("#welcome h2").textContent = model;
  $("#example").textContent = model.startsWith("haiku-")
    ? 'Write a haiku about GPU computing that includes the word "forty-two"'
    : "Explain in three sentences why the sky is blue.";
  const facts = {
    Name: model,
    Architecture: health.architecture,
    Weights: health.quant_kind,
    Device: health.device,
    Context: health.context_length && `${number(health.context_length)} tokens`,
    Vocabulary: health.vocab_size && `${number(health.vocab_size)} ${health.tokenizer_kind}`,
    Memory: health.memory_bytes > 0 && `${number(health.memory_bytes / 1e6)} MB`,
  };
  $("#facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => {
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, description.textContent] = [name, value];
    return [term, description];
  }));
}

async function poll() {
  let seen;
  if (!document.hidden) showHealth(seen = await health());
  setTimeout(poll, seen?.status === "ready" ? POLL_MS.ready : POLL_MS.other);
}

$("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
text.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter is its own.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});
text.addEventListener("input", fitText);
stop.addEventListener("click", () => running?.abort());
$("#example").addEventListener("click", (event) => setText(event.target.textContent));
$("#clear").addEventListener("click", () => {
  running?.abort();
  modes[mode].exchanges = [];
  $(`#${mode}`).replaceChildren();
  showWelcome();
  text.focus();
});
$("#modes").addEventListener("change", (event) => setMode(event.target.value));
settings.addEventListener("input", showSettings);
settings.addEventListener("submit", (event) => event.preventDefault());
// A reset form has its values after the event.
settings.addEventListener("reset", () => setTimeout(showSettings));

panel.open = matchMedia("(min-width: 60rem)").matches;
setMode($("[name=mode]:checked").value);
showSettings();
poll();
