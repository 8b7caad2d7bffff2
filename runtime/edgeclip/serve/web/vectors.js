// Vectors: one of a text or a picture, or one for each of its tokens. Read, compared, bounded; knows nothing of the page.

/** The bytes of vectors that the page holds of its pictures: 640 pages of 779 tokens. */
export const limits = { bytes: 256e6 };
// A picture that is the question has hundreds of vectors: with so many of them a search takes a moment.
const MOST_OF_A_PICTURE = 32;

/** What a row of an answer holds, { numbers, dim }: the numbers of its vectors, one vector after the other. */
export function readVectors(row) {
  const vectors = (row.embeddings ?? [row.embedding]).map(decodeVector);
  const dim = vectors[0].length;
  const numbers = new Float32Array(dim * vectors.length);
  vectors.forEach((vector, i) => numbers.set(vector, i * dim));
  return { numbers, dim };
}

/** Base64 of little-endian float32, whatever the order of this machine. */
export function decodeVector(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** Some of many vectors, evenly spaced. */
export function thinned({ numbers, dim }) {
  const count = numbers.length / dim;
  const kept = Math.min(count, MOST_OF_A_PICTURE);
  const some = new Float32Array(kept * dim);
  for (let i = 0; i < kept; i++) {
    const place = Math.floor((i * count) / kept);
    some.set(numbers.subarray(place * dim, (place + 1) * dim), i * dim);
  }
  return { numbers: some, dim };
}

/**
 * MaxSim: for each vector of the question the largest dot product with any of the document's, summed up. Of single
 * vectors, which have length 1, that is their cosine.
 */
export function compare(question, document) {
  const [a, b, dim] = [question.numbers, document.numbers, question.dim];
  let sum = 0;
  for (let i = 0; i < a.length; i += dim) {
    let best = -Infinity;
    for (let j = 0; j < b.length; j += dim) {
      let product = 0;
      for (let k = 0; k < dim; k++) product += a[i + k] * b[j + k];
      if (product > best) best = product;
    }
    sum += best;
  }
  return sum;
}

/** Pictures by their score, the best first. A picture keeps its score until it or the question has other vectors. */
export function rank(pictures, question) {
  return pictures
    .map((picture) => {
      const { question: asked, vectors } = picture.scored ?? {};
      if (asked !== question || vectors !== picture.vectors) {
        picture.scored = { question, vectors: picture.vectors, score: compare(question, picture.vectors) };
      }
      return { picture, score: picture.scored.score };
    })
    .sort((a, b) => b.score - a.score);
}
