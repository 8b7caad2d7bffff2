// The page: pictures come in by choosing, dropping or pasting; their vectors stay here; a text ranks them.
import { Client, rank } from "./client.js";

const MOST_AT_ONCE = 4; // pictures in a request: the progress bar moves, and a text waits for little
const MOST_BYTES_AT_ONCE = 8e6;
const TYPING_PAUSE_MS = 250;
const SHOWN_AT_FIRST = 60;

const at = (id) => document.getElementById(id);
const client = new Client();
const pictures = []; // { name, identity, url, vector }, in the order in which they came
let queue = []; // files that wait for their vectors
let work = null; // the AbortController of the pictures' requests while there are any
let total = 0;
let search = null; // what was asked last: { label, vector }, and of a text { isCut, serverMs, totalMs }
let typing = 0;
let asking = null; // the AbortController of the text's request
let isAllShown = false;
let isLocked = false; // a key is wanted

// Pictures

function add(files) {
  const known = new Set([...pictures, ...queue].map((entry) => entry.identity ?? identify(entry)));
  for (const file of files) {
    if (file.type && !file.type.startsWith("image/")) complain(`${isolated(file.name)}: not a picture`);
    else if (!known.has(identify(file))) {
      known.add(identify(file));
      queue.push(file);
      total++;
    }
  }
  run();
}

const identify = (file) => `${file.name} ${file.size} ${file.lastModified}`;

/** Send what waits, a few at a time, one request after the other. */
async function run() {
  if (work || isLocked || !queue.length) return;
  work = new AbortController();
  const { signal } = work;
  const started = performance.now();
  const before = pictures.length;
  try {
    while (queue.length) {
      showProgress();
      const group = nextGroup();
      await embedGroup(group, signal);
      queue.splice(0, group.length);
      show();
    }
  } catch (error) {
    if (error.status === 401) askForKey();
    else if (error.name !== "AbortError") complain(error.message);
    if (error.status !== 401) queue = [];
  }
  work = null;
  if (!isLocked) total = 0;
  at("work").hidden = true;
  const count = pictures.length - before;
  show(count ? `${plural(count)} read in ${seconds(performance.now() - started)}. ` : "");
}

function nextGroup() {
  const group = [queue[0]];
  let bytes = queue[0].size;
  for (const file of queue.slice(1, MOST_AT_ONCE)) {
    bytes += file.size;
    if (bytes > MOST_BYTES_AT_ONCE) break;
    group.push(file);
  }
  return group;
}

/** One bad picture makes the server refuse its company too, so these are then sent one by one. */
async function embedGroup(files, signal) {
  try {
    const { vectors } = await client.embedPictures(files, signal, (wait) => showProgress(wait));
    files.forEach((file, i) => keep(file, vectors[i]));
  } catch (error) {
    const isAboutPictures = error.status >= 400 && error.status < 500 && ![401, 404, 429].includes(error.status);
    if (!isAboutPictures) throw error;
    if (files.length === 1) complain(`${isolated(files[0].name)}: ${error.message.replace(/^input\[\d+\]:? ?/, "")}`);
    else for (const file of files) await embedGroup([file], signal);
  }
}

function keep(file, vector) {
  pictures.push({ name: file.name, identity: identify(file), url: URL.createObjectURL(file), vector });
}

/** The files of what was dropped; of a folder all that are in it. */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(filesIn))).flat();
}

async function filesIn(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // it gives a hundred at a time, and none at the end
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found.flat();
    found.push(...(await Promise.all(some.map(filesIn))));
  }
}

// Searching

async function ask() {
  clearTimeout(typing);
  asking?.abort();
  const text = at("query").value.trim();
  if (!text) {
    search = null;
    show();
    return;
  }
  const mine = (asking = new AbortController());
  try {
    const { vectors, ...answer } = await client.embedText(text, at("task").value, mine.signal);
    search = { label: text, vector: vectors[0], ...answer };
    at("problems").replaceChildren();
    isAllShown = false;
    show();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) askForKey();
    else complain(error.message);
  }
}

function askForSimilar(picture) {
  at("query").value = "";
  search = { label: picture.name, vector: picture.vector };
  isAllShown = false;
  show();
  scrollTo({ top: 0 });
}

function askForKey() {
  isLocked = true;
  at("key-form").hidden = false;
  at("key").focus();
  if (client.key) complain("The server does not take this key.");
}

async function useKey() {
  client.key = at("key").value.trim();
  at("problems").replaceChildren();
  isLocked = false;
  at("key-form").hidden = true;
  await open();
  if (isLocked) return;
  run();
  if (at("query").value.trim()) ask();
}

async function open() {
  try {
    await client.open();
    at("model").textContent = client.model;
    document.title = `edgeclip · ${client.model}`;
    at("task").replaceChildren(...["", ...client.tasks].map((task) => new Option(task || "none", task)));
    at("task-choice").hidden = !client.tasks.length;
  } catch (error) {
    if (error.status === 401) askForKey();
    else complain(error.message);
  }
}

// What is seen

function show(prefix = "") {
  const found = search ? rank(pictures, search.vector) : pictures.map((picture) => ({ picture }));
  const shown = isAllShown ? found : found.slice(0, SHOWN_AT_FIRST);
  const [best, worst] = [found[0]?.score, found.at(-1)?.score];
  at("results").replaceChildren(...shown.map((result, i) => card(result, i, best, worst)));
  at("more").hidden = shown.length === found.length;
  at("more").textContent = `Show all ${found.length}`;
  at("clear").hidden = !pictures.length;
  at("status").textContent = prefix + summarize();
}

function summarize() {
  if (!pictures.length) {
    return search ? `${timing()} No pictures yet: add some, and see which fit.` : "No pictures yet. Nothing leaves your server.";
  }
  if (!search) return `${plural(pictures.length)}. Type what you look for.`;
  const cut = search.isCut ? " The text was too long and was cut." : "";
  return `${plural(pictures.length)} ranked for “${isolated(search.label)}”. ${timing()}${cut}`;
}

function timing() {
  if (search.totalMs === undefined) return ""; // a picture that was here already
  const server = search.serverMs === null ? "" : `${search.serverMs.toFixed(1)} ms on the server, `;
  return `${server}${search.totalMs.toFixed(0)} ms until here.`;
}

function card({ picture, score }, index, best, worst) {
  const button = make("button", { type: "button", title: "Find similar pictures" });
  const image = make("img", { src: picture.url, alt: picture.name, loading: index < 12 ? "eager" : "lazy" });
  image.onerror = () => image.replaceWith(make("span", { className: "unseen", textContent: "no preview" }));
  button.append(image);
  button.onclick = () => askForSimilar(picture);
  const item = make("li", {});
  item.append(button);
  const line = make("p", {});
  line.append(make("span", { className: "name", dir: "auto", textContent: picture.name, title: picture.name }));
  if (score !== undefined) {
    const bar = make("div", { className: "bar" });
    const fill = make("i", {});
    fill.style.width = `${best > worst ? (100 * (score - worst)) / (best - worst) : 100}%`;
    bar.append(fill);
    item.append(bar);
    line.append(make("span", { className: "score", title: "cosine", textContent: score.toFixed(3) }));
  }
  item.append(line);
  return item;
}

function showProgress(wait = 0) {
  const done = total - queue.length;
  at("work").hidden = false;
  Object.assign(at("progress"), { max: total, value: done });
  at("progress-text").textContent = wait ? `${done} of ${total}; the server is busy, ${wait} s` : `${done} of ${total}`;
}

function complain(message) {
  const lines = [...at("problems").children].map((line) => line.textContent);
  if (!lines.includes(message)) at("problems").append(make("p", { textContent: message }));
}

const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
const isolated = (text) => `\u2068${text}\u2069`; // right-to-left text must not turn what stands beside it
const plural = (count) => (count === 1 ? "1 picture" : `${count} pictures`);
const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);

function clear() {
  work?.abort();
  queue = [];
  for (const picture of pictures) URL.revokeObjectURL(picture.url);
  pictures.length = 0;
  at("problems").replaceChildren();
  show();
  at("query").focus();
}

// Events

at("search").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
at("query").oninput = (event) => {
  clearTimeout(typing);
  if (!event.isComposing) typing = setTimeout(ask, TYPING_PAUSE_MS);
};
at("query").oncompositionend = () => (typing = setTimeout(ask, TYPING_PAUSE_MS));
at("task").onchange = ask;
at("files").onchange = () => {
  add([...at("files").files]);
  at("files").value = "";
};
at("key-form").onsubmit = (event) => {
  event.preventDefault();
  useKey();
};
at("cancel").onclick = () => work?.abort();
at("clear").onclick = clear;
at("more").onclick = () => {
  isAllShown = true;
  show();
};
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("over");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
};
document.ondrop = async (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  try {
    add(await filesOf(event.dataTransfer));
  } catch {
    complain("What was dropped cannot be read.");
  }
};
document.onpaste = (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add(files);
};

open();
