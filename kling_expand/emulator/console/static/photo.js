// Is this a photo that can be sent? A file → name, size in pixels, Base64; or an Error with a sentence.

import { h } from "./dom.js";

const MOST_BYTES = 10 * 1024 * 1024;
const SHORTEST = 300;
const LONGEST_SHAPE = 2.5;

export async function read(file) {
  if (!["image/jpeg", "image/png"].includes(file.type)) throw new Error(`${file.name} is neither JPEG nor PNG.`);
  if (file.size > MOST_BYTES) throw new Error(`${file.name} has ${megabytes(file.size)} MB; at most 10 are taken.`);
  const url = URL.createObjectURL(file);
  try {
    const { width, height } = checked(await measured(file, url));
    return { name: file.name, width, height, url, base64: await encode(file) };
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
}

async function measured(file, url) {
  try {
    return await measure(url);
  } catch {
    throw new Error(`${file.name} cannot be read as a picture.`);
  }
}

function checked({ width, height }) {
  const shape = Math.max(width, height) / Math.min(width, height);
  if (Math.min(width, height) < SHORTEST) throw new Error(`${width} × ${height} pixels are too few: each side needs ${SHORTEST}.`);
  if (shape > LONGEST_SHAPE) throw new Error(`${width} × ${height} is too long and narrow: 2.5 to 1 is the most.`);
  return { width, height };
}

export async function sample(path) {
  const answer = await fetch(path);
  const blob = await answer.blob();
  return read(new File([blob], path.split("/").pop(), { type: blob.type }));
}

// Width and height as stored: the service does not turn a photo by its EXIF orientation, so neither do we.
// `naturalWidth` is of the turned photo; an image laid out under `image-orientation: none` tells the other.
export async function measure(src) {
  const image = h("img", { class: "as-stored", alt: "", src });
  document.body.append(image);
  try {
    await image.decode();
    return { width: image.width, height: image.height };
  } finally {
    image.remove();
  }
}

function encode(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

const megabytes = (bytes) => (bytes / 1024 / 1024).toFixed(1);
