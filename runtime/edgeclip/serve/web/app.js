// The page: pictures come in by choosing, dropping or pasting; their vectors stay here; a text ranks them.
import { Client } from "./client.js";
import { droppedEntries, entriesOf, lookAtAll } from "./files.js";
import { Gallery, make } from "./gallery.js";
import { asSentence, Reader } from "./reader.js";
import { limits, rank, thinned } from "./vectors.js";

const TYPING_PAUSE_MS = 250;
const NAMED_AT_MOST = 500; // of the files that were left out
const OPEN_AT_MOST = 5; // so few of them are named at once, more when somebody asks

const at = (id) => document.getElementById(id);
const client = new Client();
const gallery = new Gallery({ onSimilar: askForSimilar });
const hooks = { onRead: keep, onRefused: leaveOut, onLocked: askForKey, onChange: showWork, hasRoom };
const reader = new Reader(client, hooks);
const pictures = []; // { file, path, name, alt, media, drawn, url, vectors, bundle }, in the order in which they came
const known = new Set(); // identities of all that came and was not refused
const leftOut = new Map(); // path: why
let hidden = 0;
let bundle = null; // of the server's last answer; vectors of another one are not compared with it
let search = null; // what was asked last: { label, vectors, bundle }, and of a text { isCut, serverMs, totalMs }
let typing = 0;
let asking = null; // the AbortController of the text's request
let started = 0;
let before = 0;

// Pictures

const takes = (modality) => client.modalities.includes(modality);

/** Take what was chosen, { entries, hidden }. */
async function add(chosen) {
  if (!takes("image")) return complain("This model takes no pictures.");
  hidden += chosen.hidden;
  if (chosen.entries.length > 200) say(`Looking at ${chosen.entries.length} files.`);
  const looked = await lookAtAll(chosen.entries, (entry) => {
    const identity = identify(entry);
    return !known.has(identity) && known.add(identity);
  });
  const taken = [];
  for (const entry of looked) {
    const name = entry.path.replace(/^.*\//, "");
    const picture = { alt: name, ...entry, name };
    if (entry.fault) leaveOut(picture, entry.fault);
    else taken.push(picture);
  }
  showLeftOut();
  if (taken.length) {
    if (!reader.isLocked) say(`Reading ${plural(taken.length)}.`);
    if (!reader.queue.length) [started, before] = [performance.now(), pictures.length];
    reader.add(taken);
  } else if (!reader.queue.length) say(summarize());
}

const identify = ({ file, path }) => `${path} ${file.size} ${file.lastModified}`;

function keep(picture, vectors, from) {
  if (!picture.url) {
    picture.url = URL.createObjectURL(picture.file);
    pictures.push(picture);
  }
  Object.assign(picture, { vectors, bundle: from });
  noticeBundle(from);
}

/** Whether vectors of more pictures may come; those that are read anew have their room. */
function hasRoom() {
  const bytes = pictures.reduce((sum, { vectors }) => sum + vectors.numbers.byteLength, 0);
  return bytes < limits.bytes || Boolean(reader.queue[0]?.vectors);
}

function leaveOut(picture, reason) {
  known.delete(identify(picture));
  leftOut.set(picture.path, reason);
}

/** The server may have been restarted with another model. */
function noticeBundle(from) {
  const isOther = bundle !== null && from !== bundle;
  bundle = from;
  if (!isOther) return;
  open();
  if (search?.totalMs !== undefined && search.bundle !== bundle) ask();
}

/** The pictures whose vectors another model made. */
function stale() {
  const waiting = new Set(reader.queue);
  return pictures.filter((picture) => picture.bundle !== bundle && !waiting.has(picture));
}

async function useSamples() {
  const images = [...document.querySelectorAll("#samples img")];
  try {
    const files = images.map(async (image) => {
      const response = await fetch(image.src);
      if (!response.ok) throw new Error(response.status);
      const name = image.src.replace(/^.*\/sample-/, "");
      const file = new File([await response.blob()], name, { lastModified: 0 });
      return { file, path: name, alt: image.alt, isSample: true };
    });
    await add({ entries: await Promise.all(files), hidden: 0 });
  } catch {
    complain("The sample pictures cannot be loaded. Is the server running?");
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
    say(summarize());
    return;
  }
  const { signal } = (asking = new AbortController());
  try {
    const { vectors, ...answer } = await client.embed([{ text }], {
      task: at("task").value,
      signal,
      pause: (error, seconds) => {
        say(`${asSentence(error.message)} Trying again in ${seconds} s.`);
        return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      },
    });
    search = { label: text, vectors: vectors[0], ...answer };
    at("problems").replaceChildren();
    noticeBundle(answer.bundle);
    gallery.reset();
    show();
    showWork();
    say(summarize());
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) askForKey();
    else complain(error.message);
  }
}

async function askExample(text) {
  at("query").value = text;
  if (!pictures.length) await useSamples();
  ask();
}

function askForSimilar(picture) {
  clearTimeout(typing);
  asking?.abort();
  at("query").value = "";
  search = { label: picture.name, vectors: thinned(picture.vectors), bundle: picture.bundle };
  gallery.reset();
  show();
  say(summarize());
  scrollTo({ top: 0 });
}

function askForKey() {
  reader.isLocked = true;
  at("key-form").hidden = false;
  at("key").focus();
  if (client.key) complain("The server does not take this key.");
}

async function useKey() {
  client.key = at("key").value.trim();
  at("problems").replaceChildren();
  reader.isLocked = false;
  await open();
  if (reader.isLocked) return;
  at("key-form").hidden = true;
  at("query").focus();
  reader.goOn();
  if (at("query").value.trim()) ask();
}

async function open() {
  try {
    await client.open();
    at("model").textContent = client.model;
    gallery.measure = client.isMulti ? "MaxSim" : "cosine";
    document.title = `edgeclip · ${client.model}`;
    const task = at("task").value;
    const tasks = client.needsTask ? client.tasks : ["", ...client.tasks];
    at("task").replaceChildren(...tasks.map((task) => new Option(task || "none", task)));
    at("task").value = client.tasks.includes(task) ? task : tasks[0];
    at("task-choice").hidden = !client.tasks.length;
    at("no-pictures").hidden = takes("image");
    document.body.classList.toggle("no-pictures", !takes("image"));
    document.body.classList.toggle("no-texts", !takes("text"));
  } catch (error) {
    if (error.status === 401) askForKey();
    else complain(error.message);
  }
}

// What is seen

function show() {
  const isComparable = (picture) => search && picture.bundle === search.bundle;
  const others = pictures.filter((picture) => !isComparable(picture)).map((picture) => ({ picture }));
  gallery.render(search ? [...rank(pictures.filter(isComparable), search.vectors), ...others] : others);
  at("welcome").hidden = at("intro").hidden = pictures.length > 0;
  at("examples").hidden = pictures.length > 0 && !pictures.some(({ isSample }) => isSample);
  at("clear").hidden = !(pictures.length || leftOut.size || hidden);
}

/** Progress, and what is to be said about what waits; when it ends, the summary. */
function showWork() {
  const { state, queue, done, reason } = reader;
  const [all, old] = [done + queue.length, stale().length];
  const isAtWork = state === "reading" || state === "waiting";
  const wasFocused = at("work").contains(document.activeElement);
  at("work").hidden = !queue.length && !old;
  at("progress").hidden = !queue.length;
  Object.assign(at("progress"), { max: all, value: done });
  const count = `${done} of ${all} read, ${queue.length} left.`;
  const names = queue.slice(0, 3).map(({ name }) => isolated(name)).join(", ");
  const waiting = `Not read yet: ${names}${queue.length > 3 ? ` and ${queue.length - 3} more` : ""}. What was read is kept.`;
  const changed = `The server runs another model now, and ${plural(old)} ${old === 1 ? "has" : "have"} vectors of the one before.`;
  at("progress-text").textContent = [
    ...(queue.length ? [reason, count, ...(state === "stopped" ? [waiting] : [])] : []),
    ...(old ? [changed] : []),
  ].filter(Boolean).join(" ");
  at("stop").hidden = !isAtWork;
  at("go-on").hidden = !queue.length || state === "reading" || reader.isLocked;
  at("go-on").textContent = state === "waiting" ? "Try now" : "Go on";
  at("drop-rest").hidden = !queue.length || isAtWork;
  at("reread").hidden = !old;
  at("reread").textContent = old === 1 ? "Read it again" : `Read all ${old} again`;
  show();
  showLeftOut();
  if (!isAtWork) {
    const count = pictures.length - before;
    const isEnd = state === "idle" && started;
    const read = isEnd && count > 0 ? `${plural(count)} read in ${seconds(performance.now() - started)}. ` : "";
    if (isEnd) started = 0;
    const left = state === "stopped" ? `${plural(queue.length)} not read yet. ` : "";
    say(left + read + summarize());
  }
  // Where the focused button went away its neighbour takes over.
  const isSeen = (button) => !button.hidden && !at("work").hidden;
  if (wasFocused && !(at("work").contains(document.activeElement) && isSeen(document.activeElement))) {
    ([...at("work").querySelectorAll("button")].find(isSeen) ?? at("query")).focus();
  }
}

function showLeftOut() {
  const count = leftOut.size + hidden;
  at("left-out").hidden = !count;
  if (at("left-out").count === count) return;
  at("left-out").count = count;
  const whole = leftOut.size && hidden ? `, ${hidden} of them hidden` : hidden ? ", hidden" : "";
  at("left-out-count").textContent = `${count === 1 ? "1 file was" : `${count} files were`} left out${whole}`;
  const lines = [...leftOut].slice(0, NAMED_AT_MOST).map(([path, why]) => `${isolated(path)}: ${why}`);
  if (leftOut.size > NAMED_AT_MOST) lines.push(`and ${leftOut.size - NAMED_AT_MOST} more`);
  if (hidden) lines.push(`hidden: ${hidden}; names that begin with a dot, and what systems put beside pictures`);
  at("left-out-names").replaceChildren(...lines.map((textContent) => make("li", { textContent })));
  at("left-out").open = leftOut.size > 0 && leftOut.size <= OPEN_AT_MOST;
}

function summarize() {
  const out = leftOut.size ? ` ${leftOut.size === 1 ? "1 file was" : `${leftOut.size} files were`} left out.` : "";
  if (!pictures.length) {
    const none = reader.queue.length ? `${plural(reader.queue.length)} not read yet.` : "No pictures yet.";
    return (search ? `${timing()} ${none}` : none) + out;
  }
  if (!search) return `${plural(pictures.length)}. Type what you look for.${out}`;
  const ranked = pictures.filter((picture) => picture.bundle === search.bundle).length;
  const unranked = ranked < pictures.length ? `; ${pictures.length - ranked} not, for their vectors are of another model` : "";
  const cut = search.isCut ? " The text was too long and was cut." : "";
  return `${plural(ranked)} ranked for “${isolated(search.label)}”${unranked}. ${timing()}${cut}${out}`;
}

function timing() {
  if (search.totalMs === undefined) return ""; // a picture that was here already
  const server = search.serverMs === null ? "" : `${search.serverMs.toFixed(1)} ms on the server, `;
  return `${server}${search.totalMs.toFixed(0)} ms until here.`;
}

/** Read out too, so only what is new is said. */
function say(message) {
  if (at("status").textContent !== message) at("status").textContent = message;
}

function complain(message) {
  const lines = [...at("problems").children].map((line) => line.textContent);
  if (!lines.includes(asSentence(message))) at("problems").append(make("p", { textContent: asSentence(message) }));
}

const isolated = (text) => `\u2068${text}\u2069`; // right-to-left text must not turn what stands beside it
const plural = (count) => (count === 1 ? "1 picture" : `${count} pictures`);
const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);

function clear() {
  for (const picture of pictures) {
    URL.revokeObjectURL(picture.url);
    gallery.forget(picture);
  }
  pictures.length = hidden = 0;
  known.clear();
  leftOut.clear();
  at("problems").replaceChildren();
  started = 0;
  reader.clear();
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
for (const input of [at("files"), at("folder")]) {
  input.onchange = () => {
    add(entriesOf(input.files));
    input.value = "";
  };
}
at("folder-choice").hidden = !("webkitdirectory" in at("folder"));
at("use-samples").onclick = async () => {
  await useSamples();
  at("query").focus();
};
for (const example of document.querySelectorAll("#examples button")) {
  example.onclick = () => askExample(example.textContent);
}
at("key-form").onsubmit = (event) => {
  event.preventDefault();
  useKey();
};
at("stop").onclick = () => reader.stop();
at("go-on").onclick = () => reader.goOn();
at("drop-rest").onclick = () => {
  for (const picture of reader.queue) if (!picture.url) known.delete(identify(picture));
  reader.clear();
};
at("reread").onclick = () => reader.add(stale());
at("clear").onclick = clear;
addEventListener("online", () => reader.goOn());
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
  const dropped = await droppedEntries(event.dataTransfer);
  if (dropped.entries.length || dropped.hidden) add(dropped);
  else complain("What was dropped is not a file. Save the picture first, then drop it.");
};
document.onpaste = (event) => {
  const { files } = event.clipboardData ?? {};
  if (files?.length) add(entriesOf(files));
};

show();
open();
