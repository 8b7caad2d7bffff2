// Which files are pictures: by their first bytes, never by name or media type. And the files of a dropped folder.

const HEAD_BYTES = 1024;
const LOOKED_AT_ONCE = 64;
const SHORT_SIDE_PX = 1024; // twice what jina-clip-v2 sees: enough of a picture that is drawn anew

// What the service decodes, each pattern on the first bytes as Latin-1.
const TAKEN = [
  [/^\xff\xd8\xff/, "image/jpeg"],
  [/^\x89PNG/, "image/png"],
  [/^GIF8/, "image/gif"],
  [/^RIFF....WEBP/s, "image/webp"],
  [/^(?:II[*+]\0|MM\0[*+])/, "image/tiff"],
  [/^BM.{12}[\x0c(48@l|]\0\0\0/s, "image/bmp"],
];
const SAVE = "save it as JPEG or PNG";
// What it does not, though some browsers do: then the browser draws it, and what is drawn is sent as PNG.
const DRAWN = [
  [/^....ftyp(?:avi[fs]|(?:mif1|msf1).{0,64}avif)/s, "image/avif", "an AVIF picture", SAVE],
  [/^....ftyp(?:he[iv][cxms]|mif1|msf1)/s, "image/heic", "a HEIC picture",
    `${SAVE} (an iPhone does so itself: Settings, Camera, Formats, Most Compatible)`],
  [/^(?:\xff\x0a|\0\0\0\x0cJXL )/, "image/jxl", "a JPEG XL picture", SAVE],
  [/^(?:\0\0\0\x0cjP {2}|\xff\x4f\xff\x51)/, "image/jp2", "a JPEG 2000 picture", SAVE],
  [/^\0\0[\x01\x02]\0[^\0]/, "image/x-icon", "an icon", SAVE],
  [/^(?:\xef\xbb\xbf)?\s*<(?:svg[\s>]|(?:\?xml|!--|!DOCTYPE svg).*<svg[\s>])/is, "image/svg+xml", "an SVG drawing", "save it as PNG"],
];
// What people choose most among the rest.
const NAMED = [
  [/^$/, "an empty file", "copy it again"],
  [/^\0\x05\x16\x07/, "an AppleDouble file, which holds what macOS notes about another one", "choose that one"],
  [/^%PDF/, "a PDF document", "save its pages as pictures"],
  [/^(?:%!PS|\xc5\xd0\xd3\xc6)/, "a PostScript drawing", "save it as PNG"],
  [/^8BPS/, "a Photoshop document", "save it as PNG"],
  [/^gimp xcf/, "a GIMP document", "save it as PNG"],
  [/^P[1-7]\s/, "a PPM picture", "save it as PNG"],
  [/^(?:FUJIFILMCCD-RAW|IIR[OS]|IIU\0|....ftypcrx)/s, "a camera's raw picture", "save it as JPEG"],
  [/^(?:....ftyp|RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba])/s, "a video", "save pictures of it"],
  [/^(?:ID3|RIFF....WAVE|OggS|fLaC)/s, "a sound", "choose pictures"],
  [/^(?:PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!)/, "an archive or an Office document", "take the pictures out of it"],
  [/^version https:\/\/git-lfs/, "a pointer of Git LFS and not the picture itself", "run git lfs pull"],
  [/^(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)/i, "a web page, perhaps of a failed download", "download the picture again"],
];

/**
 * What a file is: { media } where the service takes it, { media, drawn } where the browser may draw it, else { fault };
 * `drawn` and `fault` say what it is and what to do.
 */
export async function look(file) {
  let bytes;
  try {
    bytes = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  } catch {
    return { fault: "cannot be read; is it a folder, or gone?" };
  }
  const head = String.fromCharCode(...bytes);
  const fits = ([pattern]) => pattern.test(head);
  const taken = TAKEN.find(fits);
  if (taken) return { media: taken[1] };
  const drawn = DRAWN.find(fits);
  if (drawn) return { media: drawn[1], drawn: `${drawn[2]}, which neither the server nor this browser reads; ${drawn[3]}` };
  const named = NAMED.find(fits);
  if (named) return { fault: `${named[1]}; ${named[2]}` };
  return { fault: isText(bytes) ? "a text and not a picture" : "not a picture that is known here; save it as JPEG or PNG" };
}

/** `look` at every entry { file, path } that `isNew`; a few at a time, so that thousands hold up nothing. */
export async function lookAtAll(entries, isNew) {
  const looked = [];
  for (let start = 0; start < entries.length; start += LOOKED_AT_ONCE) {
    const some = entries.slice(start, start + LOOKED_AT_ONCE).filter(isNew);
    looked.push(...(await Promise.all(some.map(async (entry) => ({ ...entry, ...(await look(entry.file)) })))));
  }
  return looked;
}

function isText(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: true }); // its end may be half a character
    return !/[\0-\x08\x0e-\x1a\x1c-\x1f]/.test(text);
  } catch {
    return /^(?:\xff\xfe|\xfe\xff)/.test(String.fromCharCode(...bytes.slice(0, 2))); // UTF-16
  }
}

/** The picture { file, media, drawn } as a data URI that the service takes. Rejects with what to tell the user. */
export async function toDataUri({ file, media, drawn }) {
  const blob = file.slice(0, file.size, media);
  const sent = drawn ? await redraw(blob, drawn) : blob;
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("cannot be read; is it gone?"));
    reader.readAsDataURL(sent);
  });
}

/** As PNG, no larger than is of use. */
async function redraw(blob, fault) {
  const url = URL.createObjectURL(blob);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const [width, height] = [image.naturalWidth || SHORT_SIDE_PX, image.naturalHeight || SHORT_SIDE_PX];
    const scale = Math.min(1, SHORT_SIDE_PX / Math.min(width, height));
    const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob();
  } catch {
    throw new Error(fault);
  } finally {
    URL.revokeObjectURL(url);
  }
}

// Folders

// Of what lies in a folder: names that begin with a dot (AppleDouble's do), and what systems put beside pictures.
const HIDDEN = /\/(?:\.|__MACOSX(?:\/|$)|@eaDir(?:\/|$)|(?:Thumbs\.db|desktop\.ini)$)/i;
const inOrder = new Intl.Collator(undefined, { numeric: true });

/** The entries { file, path } of chosen files, and how many hidden ones were left out. */
export function entriesOf(files) {
  return withoutHidden([...files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
}

/** The same of what was dropped; of a folder all that is in it. To be called while the event lasts. */
export async function droppedEntries(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const roots = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  for (const root of roots) {
    if (root instanceof File) found.push({ file: root, path: root.name });
    else await walk(root, found);
  }
  return withoutHidden(found);
}

function withoutHidden(entries) {
  const seen = entries.filter(({ path }) => !HIDDEN.test(path));
  const isOneFolder = seen.some(({ path }) => path.includes("/"));
  if (isOneFolder) seen.sort((a, b) => inOrder.compare(a.path, b.path));
  return { entries: seen, hidden: entries.length - seen.length };
}

async function walk(entry, found) {
  const path = entry.fullPath.slice(1);
  try {
    if (entry.isFile) {
      found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path });
    } else if (HIDDEN.test(path)) {
      found.push({ path }); // counted as one: what is in it may be a whole repository
    } else {
      const reader = entry.createReader();
      for (;;) {
        // it gives a hundred at a time, and none at the end
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!some.length) return;
        for (const child of some) await walk(child, found);
      }
    }
  } catch {
    found.push({ file: new Unreadable(), path });
  }
}

/** Stands for a file that cannot be opened, so that it is named like any other. */
class Unreadable {
  slice() {
    throw new Error("cannot be opened");
  }
}
