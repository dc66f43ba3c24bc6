// Reads a photo. `read` returns its name, size in pixels and Base64, or throws an Error that names the broken rule.

import { h } from "./dom.js";

const MAX_BYTES = 10 * 1024 * 1024;
const MIN_SIDE = 300;
const MAX_ASPECT = 2.5;

export async function read(file) {
  if (!["image/jpeg", "image/png"].includes(file.type)) throw new Error(`The photo must be a JPEG or PNG file, got ${file.name}.`);
  if (file.size > MAX_BYTES) throw new Error(`The photo must be at most 10 MB, got ${megabytes(file.size)} MB.`);
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
  if (Math.min(width, height) < MIN_SIDE) throw new Error(`Each side must have at least ${MIN_SIDE} pixels, got ${width} × ${height}.`);
  if (shape > MAX_ASPECT) throw new Error(`The aspect ratio must be between 1:2.5 and 2.5:1, got ${width} × ${height}.`);
  return { width, height };
}

export async function sample(path) {
  const response = await fetch(path);
  const blob = await response.blob();
  return read(new File([blob], path.split("/").pop(), { type: blob.type }));
}

// Returns the width and height as stored, because the service ignores the EXIF orientation. `naturalWidth` applies the
// orientation, but the layout size under `image-orientation: none` does not.
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
