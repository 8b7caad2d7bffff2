// The API as this page uses it: POST v1/embeddings in Jina's dialect, GET v1/models. Knows nothing of the page.

const LONGEST_WAIT_S = 30;
const MOST_TRIES = 20;

/** What the server said no with, in its own words; status 0 when it could not be reached. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A server: its key, and its only model. */
export class Client {
  constructor() {
    this.key = "";
    this.model = "edgeclip";
    this.tasks = [];
  }

  /** Learn the model's name and its tasks. */
  async open() {
    const response = await this.fetch("v1/models", {});
    const model = (await response.json()).data[0];
    this.model = model.id;
    this.tasks = model.tasks ?? [];
  }

  /** Unit vectors of a text, and the milliseconds it took there and in all. `task` may be "". */
  async embedText(text, task, signal) {
    return this.embed([{ text }], { task, signal });
  }

  /** Unit vectors of picture files, in their order. Waits where the server is busy; `onWait` is told the seconds. */
  async embedPictures(files, signal, onWait) {
    const input = await Promise.all(files.map(async (file) => ({ image: await readDataUri(file) })));
    for (let tries = 1; ; tries++) {
      try {
        return await this.embed(input, { signal });
      } catch (error) {
        if (error.status !== 429 || tries === MOST_TRIES) throw error;
        onWait(error.retryAfter);
        await sleep(error.retryAfter, signal);
      }
    }
  }

  async embed(input, { task, signal }) {
    const started = performance.now();
    const body = { model: this.model, input, embedding_type: "base64", truncate: true, ...(task && { task }) };
    const response = await this.fetch("v1/embeddings", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    const { data } = await response.json();
    const total = /(?:^|,\s*)total;dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
    return {
      vectors: data.map((row) => decodeVector(row.embedding)),
      isCut: data.some((row) => row.truncated),
      serverMs: total ? Number(total[1]) : null,
      totalMs: performance.now() - started,
    };
  }

  async fetch(path, options) {
    const headers = { ...options.headers };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "The server does not answer. Is it running?");
    }
    if (response.ok) return response;
    throw await readError(response);
  }
}

/** Pictures by their cosine with a vector, the best first. All vectors have length 1. */
export function rank(pictures, vector) {
  return pictures
    .map((picture) => ({ picture, score: dot(picture.vector, vector) }))
    .sort((a, b) => b.score - a.score);
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Base64 of little-endian float32, whatever the order of this machine. */
export function decodeVector(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

async function readError(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  try {
    message = (await response.json()).error.message;
  } catch {
    // no JSON: a proxy's answer, or a limit before the service; the status must do
  }
  const error = new ServerError(response.status, message);
  error.retryAfter = Math.min(LONGEST_WAIT_S, Number(response.headers.get("Retry-After")) || 1);
  return error;
}

function readDataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ServerError(400, "the file cannot be read; is it a folder, or gone?"));
    reader.readAsDataURL(file);
  });
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
