// The API as this page uses it: POST v1/embeddings in Jina's dialect, GET v1/models. Knows nothing of the page.
import { readVectors } from "./vectors.js";

const LONGEST_WAIT_S = 30;
// A network that is lost in silence would keep a request for ever. The service itself gives up after 300 s.
const LONGEST_ANSWER_MS = 330_000;
const PASSING = new Set([0, 429, 502, 503, 504]); // may be gone at the next try
// A server that says it is busy is there, so it is asked for longer. Without a Retry-After six tries take half a minute.
const MOST_TRIES = 6;
const MOST_TRIES_WHERE_BUSY = 20;

/** What the server said no with, in its own words; status 0 when it could not be reached. */
export class ServerError extends Error {
  constructor(status, message, { code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** A server: its key, and its only model. */
export class Client {
  constructor() {
    this.key = "";
    this.model = "edgeclip";
    this.modalities = ["text", "image"];
    this.tasks = []; // of texts
    this.imageTask = ""; // what pictures are embedded for, where the model needs a task
    this.needsTask = false;
    this.isMulti = false; // a vector for each token
  }

  /** Learn the model's name, what it takes, and its tasks. */
  async open() {
    const response = await this.fetch("v1/models", {});
    const model = (await response.json()).data[0];
    this.model = model.id;
    this.modalities = model.modalities;
    this.needsTask = model.task_required;
    this.isMulti = Boolean(model.spaces.multi);
    const tasksOf = (modality) => model.tasks.filter((task) => model.task_details[task].modalities.includes(modality));
    const forImages = this.needsTask ? tasksOf("image") : [];
    this.imageTask = forImages.find((task) => task === "retrieval.passage") ?? forImages[0] ?? "";
    // The pictures have one adapter, and a text of another one cannot be compared with them.
    const isComparable = (task) => model.task_details[task].adapter === model.task_details[this.imageTask].adapter;
    this.tasks = this.imageTask ? tasksOf("text").filter(isComparable) : tasksOf("text");
  }

  /**
   * The vectors of the API's inputs, in their order (`readVectors`), a vector for each token where the model has them;
   * `bundle` names what made them, for vectors of two bundles cannot be compared. Where the server is busy or gone,
   * `pause(error, seconds)` is awaited and it is asked again.
   */
  async embed(input, { task = this.imageTask, signal, pause }) {
    for (let tries = 1; ; tries++) {
      try {
        return await this.embedOnce(input, task, signal);
      } catch (error) {
        if (error.code === "model_not_found" && tries === 1) await this.open(); // restarted with another one
        else if (!PASSING.has(error.status) || tries >= (error.status === 429 ? MOST_TRIES_WHERE_BUSY : MOST_TRIES)) throw error;
        else await pause(error, Math.min(LONGEST_WAIT_S, error.retryAfter ?? 2 ** (tries - 1)));
        signal.throwIfAborted();
      }
    }
  }

  async embedOnce(input, task, signal) {
    const started = performance.now();
    const wanted = { ...(task && { task }), ...(this.isMulti && { return_multivector: true }) };
    const body = { model: this.model, input, embedding_type: "base64", truncate: true, ...wanted };
    const response = await this.fetch("v1/embeddings", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.any([signal, AbortSignal.timeout(LONGEST_ANSWER_MS)]),
    });
    const { data, model } = await readJson(response);
    signal.throwIfAborted();
    const total = /(?:^|,\s*)total;dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
    return {
      vectors: data.map(readVectors),
      bundle: response.headers.get("Edgeclip-Bundle") ?? model,
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
      throw asServerError(error);
    }
    if (response.ok) return response;
    throw await readError(response);
  }
}

/** The body; the connection may end in the middle of it. */
async function readJson(response) {
  try {
    return await response.json();
  } catch (error) {
    throw asServerError(error);
  }
}

function asServerError(error) {
  if (error.name === "AbortError") return error;
  if (error.name === "TimeoutError") return new ServerError(0, "The server did not answer within five minutes.");
  return new ServerError(0, "The server does not answer. Is it running?");
}

async function readError(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  let code = null;
  try {
    ({ message, code } = (await response.json()).error);
  } catch {
    // no JSON: a proxy's answer, or a limit before the service; the status must do
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  return new ServerError(response.status, message, { code, retryAfter });
}
