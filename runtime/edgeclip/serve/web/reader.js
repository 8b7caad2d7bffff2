// The pictures that wait for their vectors: sent a few at a time, one request after the other. Where the server is
// busy or gone it is tried again; after that what is left waits here until somebody says to go on. Nothing is lost.
import { toDataUri } from "./files.js";

const MOST_AT_ONCE = 4; // pictures in a request: the progress bar moves, and a text waits for little
const MOST_BYTES_AT_ONCE = 8e6;
const NO_ROOM = "This page holds no more vectors. Remove some pictures first.";
const KEY_FIRST = "The server wants a key first.";
const ABOUT_ALL = [401, 403, 404, 408, 429]; // refusals that are about no picture

/**
 * `state` is "idle", "reading", "waiting" (for the next try) or "stopped"; `reason` says why it waits or stopped.
 * Calls hooks.onRead(picture, vectors, bundle), onRefused(picture, reason), onLocked() where a key is wanted, and
 * onChange() after each change. Where hooks.hasRoom() says no, pictures are refused before they are sent.
 */
export class Reader {
  constructor(client, hooks) {
    Object.assign(this, { client, hooks, state: "idle", reason: "", queue: [], done: 0, work: null, skipPause: null });
    this.isLocked = false; // a key is wanted
  }

  add(pictures) {
    this.queue = [...this.queue, ...pictures];
    this.goOn();
  }

  /** Begin, or try again at once. */
  goOn() {
    if (this.work) this.skipPause?.();
    else if (this.queue.length && this.isLocked) this.change("stopped", KEY_FIRST);
    else if (this.queue.length) this.run();
  }

  /** Keep what waits. */
  stop() {
    this.work?.abort();
  }

  /** Forget what waits. */
  clear() {
    this.work?.abort();
    this.work = null;
    Object.assign(this, { queue: [], done: 0 });
    this.change("idle");
  }

  async run() {
    const work = (this.work = new AbortController());
    try {
      while (this.queue.length) {
        this.change("reading");
        if (this.hooks.hasRoom()) await this.embed(this.nextGroup(), work.signal);
        else this.refuseNew();
      }
      this.end(work, "idle");
    } catch (error) {
      if (error.status === 401) this.isLocked = true;
      const reason = this.isLocked ? KEY_FIRST : error.name === "AbortError" ? "Stopped." : asSentence(error.message);
      if (this.end(work, "stopped", reason) && this.isLocked) this.hooks.onLocked();
    }
  }

  /** Refuse what has no vectors yet. */
  refuseNew() {
    for (const picture of this.queue.filter(({ vectors }) => !vectors)) {
      this.finish(picture, () => this.hooks.onRefused(picture, NO_ROOM));
    }
  }

  /** Whether this work was still the one. */
  end(work, state, reason) {
    if (this.work !== work) return false;
    this.work = null;
    if (state === "idle") this.done = 0;
    this.change(state, reason);
    return true;
  }

  change(state, reason = "") {
    Object.assign(this, { state, reason });
    this.hooks.onChange();
  }

  nextGroup() {
    const group = [];
    let bytes = 0;
    for (const picture of this.queue.slice(0, MOST_AT_ONCE)) {
      bytes += picture.file.size;
      if (group.length && bytes > MOST_BYTES_AT_ONCE) break;
      group.push(picture);
    }
    return group;
  }

  async embed(group, signal) {
    const results = await Promise.allSettled(group.map(toDataUri));
    signal.throwIfAborted();
    const sent = [];
    results.forEach((result, i) => {
      if (result.status === "fulfilled") sent.push({ picture: group[i], image: result.value });
      else this.finish(group[i], () => this.hooks.onRefused(group[i], result.reason.message));
    });
    if (sent.length) await this.send(sent, signal);
  }

  /** One bad picture makes the server refuse its company too, so these are then sent one by one. */
  async send(sent, signal) {
    try {
      const input = sent.map(({ image }) => ({ image }));
      const pause = (error, seconds) => this.pause(error, seconds, signal);
      const { vectors, bundle } = await this.client.embed(input, { signal, pause });
      sent.forEach(({ picture }, i) => this.finish(picture, () => this.hooks.onRead(picture, vectors[i], bundle)));
    } catch (error) {
      const isAboutPictures = error.status >= 400 && error.status < 500 && !ABOUT_ALL.includes(error.status);
      if (!isAboutPictures) throw error;
      if (sent.length > 1) for (const one of sent) await this.send([one], signal);
      else this.finish(sent[0].picture, () => this.hooks.onRefused(sent[0].picture, error.message.replace(/^input\[\d+\]:? ?/, "")));
    }
  }

  /** Done with it: a later failure does not send it again. */
  finish(picture, then) {
    this.queue.splice(this.queue.indexOf(picture), 1);
    this.done++;
    then();
  }

  async pause(error, seconds, signal) {
    this.change("waiting", `${asSentence(error.message)} Trying again in ${seconds} s.`);
    await new Promise((resolve) => {
      this.skipPause = resolve;
      setTimeout(resolve, seconds * 1000);
      signal.addEventListener("abort", resolve);
    });
    this.skipPause = null;
    if (!signal.aborted) this.change("reading");
  }
}

/** The service's messages begin small and have no full stop. */
export function asSentence(message) {
  return message.charAt(0).toUpperCase() + message.slice(1) + (/[.?!]$/.test(message) ? "" : ".");
}
