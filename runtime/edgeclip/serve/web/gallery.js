// The pictures as they are seen: cards that stay what they are while their order changes, and one picture large.

const SHOWN_AT_FIRST = 60;
const SHOWN_MORE = 300;

const at = (id) => document.getElementById(id);
export const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

/** `found` are { picture, score } in their order; a score is undefined where there is none. */
export class Gallery {
  constructor({ onSimilar }) {
    Object.assign(this, { found: [], cards: new Map(), limit: SHOWN_AT_FIRST, viewed: null, framed: null, measure: "cosine" });
    at("more").onclick = () => this.showMore();
    at("view-previous").onclick = () => this.move(-1);
    at("view-next").onclick = () => this.move(1);
    at("view-close").onclick = () => at("view").close();
    at("view-similar").onclick = () => {
      at("view").close();
      onSimilar(this.viewed);
    };
    at("view").onclick = (event) => event.target === at("view") && at("view").close(); // beside it
    at("view").onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.move(step);
    };
    at("view").onclose = () => this.focusCard(this.viewed);
  }

  /** A new question: the best are seen first again. */
  reset() {
    this.limit = SHOWN_AT_FIRST;
  }

  render(found) {
    this.found = found;
    const list = at("results");
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    const place = focused ? [...list.children].indexOf(focused.closest("li")) : 0;
    const shown = found.slice(0, this.limit);
    const scores = found.map(({ score }) => score).filter((score) => score !== undefined);
    const wanted = shown.map(({ picture, score }) => this.card(picture, score, scores[0], scores.at(-1)));
    const kept = new Set(wanted);
    for (const item of [...list.children]) if (!kept.has(item)) item.remove();
    wanted.forEach((item, i) => list.children[i] !== item && list.insertBefore(item, list.children[i] ?? null));
    // A node that is moved loses the focus, and one that is gone leaves it to its place.
    if (focused && document.activeElement !== focused) {
      const next = focused.isConnected ? focused : (wanted[Math.min(place, wanted.length - 1)]?.firstChild ?? at("query"));
      next.focus({ preventScroll: true });
    }
    const left = found.length - shown.length;
    at("more").hidden = !left;
    at("more").textContent = left > SHOWN_MORE ? `Show ${SHOWN_MORE} more of ${left}` : `Show the other ${left}`;
    if (at("view").open) this.showViewed();
  }

  showMore() {
    const first = this.limit;
    this.limit += SHOWN_MORE;
    this.render(this.found);
    at("results").children[first]?.firstChild.focus();
  }

  /** Forget the card of a picture that is no more. */
  forget(picture) {
    this.cards.delete(picture);
  }

  card(picture, score, best, worst) {
    let item = this.cards.get(picture);
    if (!item) {
      item = this.makeCard(picture);
      this.cards.set(picture, item);
    }
    const [, bar, line] = item.children;
    bar.hidden = line.lastChild.hidden = score === undefined;
    if (score !== undefined) {
      bar.firstChild.style.width = `${best > worst ? (100 * (score - worst)) / (best - worst) : 100}%`;
      Object.assign(line.lastChild, { textContent: score.toFixed(3), title: this.measure });
    }
    return item;
  }

  makeCard(picture) {
    const button = make("button", { type: "button", title: "Show it larger" });
    button.onclick = () => this.view(picture);
    button.append(makeImage(picture, { loading: "lazy", decoding: "async", draggable: false }));
    const bar = make("div", { className: "bar" });
    bar.append(make("i", {}));
    const line = make("p", {});
    line.append(
      make("span", { className: "name", dir: "auto", textContent: picture.name, title: picture.path }),
      make("span", { className: "score" }),
    );
    const item = make("li", {});
    item.append(button, bar, line);
    return item;
  }

  // One picture, large

  view(picture) {
    this.viewed = picture;
    this.showViewed();
    at("view").showModal();
  }

  move(step) {
    const count = this.found.length;
    this.viewed = this.found[(this.placeOfViewed() + step + count) % count].picture;
    this.showViewed();
  }

  placeOfViewed() {
    return this.found.findIndex(({ picture }) => picture === this.viewed);
  }

  showViewed() {
    const place = this.placeOfViewed();
    if (place < 0) return at("view").close();
    const { score } = this.found[place];
    if (this.framed !== this.viewed) {
      this.framed = this.viewed;
      at("view-frame").replaceChildren(makeImage(this.viewed, {}));
      at("view-name").textContent = this.viewed.path;
    }
    const cosine = score === undefined ? "" : ` · cosine ${score.toFixed(3)}`;
    at("view-place").textContent = `${place + 1} of ${this.found.length}${cosine}`;
    at("view-similar").hidden = !this.viewed.vectors;
  }

  /** Where the larger view was left; the arrows may have gone beyond the cards that are shown. */
  focusCard(picture) {
    const item = this.cards.get(picture);
    const button = (item?.isConnected ? item : at("results").lastChild)?.firstChild ?? at("query");
    button.focus();
    at("view-frame").replaceChildren();
    this.framed = null;
  }
}

function makeImage(picture, properties) {
  const image = make("img", { ...properties, alt: picture.alt, src: picture.url });
  image.onerror = () => image.replaceWith(make("span", { className: "unseen", textContent: `${picture.alt}: no preview` }));
  return image;
}
