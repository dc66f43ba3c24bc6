// The geometry of the canvas. Ratios are {up, down, left, right}, in heights and widths of the photo.

export const SIDES = ["up", "down", "left", "right"];
export const NONE = { up: 0, down: 0, left: 0, right: 0 };
export const MAX_SIDE = 2;
export const MAX_AREA = 3;
export const SHAPES = [
  { name: "1:1", aspect: 1 },
  { name: "4:3", aspect: 4 / 3 },
  { name: "16:9", aspect: 16 / 9 },
  { name: "9:16", aspect: 9 / 16 },
];
const OPPOSITE = { up: "down", down: "up", left: "right", right: "left" };
const SAME_SHAPE = 5e-4; // the error of four decimals

export const isUpright = (side) => side === "up" || side === "down";
export const across = (ratios) => 1 + ratios.left + ratios.right;
export const along = (ratios) => 1 + ratios.up + ratios.down;
export const area = (ratios) => across(ratios) * along(ratios);
export const aspect = (photo, ratios) => (photo.width * across(ratios)) / (photo.height * along(ratios));

const rounded = (value) => Math.round(value * 1e4) / 1e4;
const roundedDown = (value) => Math.floor(value * 1e4 + 1e-6) / 1e4;

// The largest ratio of a side while the other ratios stay.
export function maxRatio(ratios, side) {
  const other = isUpright(side) ? across(ratios) : along(ratios);
  const left = MAX_AREA / other - 1 - ratios[OPPOSITE[side]];
  return Math.max(0, roundedDown(Math.min(MAX_SIDE, left)));
}

export function moved(ratios, side, value) {
  const wanted = Number.isFinite(value) ? rounded(value) : 0;
  return { ...ratios, [side]: Math.min(Math.max(0, wanted), maxRatio(ratios, side)) };
}

// The ratio of a side that gives an aspect ratio, or null when there is none.
function placeFor(photo, ratios, side, shape) {
  const total = isUpright(side)
    ? (photo.width * across(ratios)) / shape.aspect / photo.height
    : (shape.aspect * photo.height * along(ratios)) / photo.width;
  const value = total - 1 - ratios[OPPOSITE[side]];
  return value >= 0 && value <= maxRatio(ratios, side) ? value : null;
}

// The value, or the nearest one within `reach` that gives 0 or one of the aspect ratios.
export function snapped(photo, ratios, side, value, reach) {
  const places = SHAPES.map((shape) => placeFor(photo, ratios, side, shape)).filter((place) => place !== null);
  const near = [0, ...places].filter((place) => Math.abs(place - value) <= reach);
  return near.sort((a, b) => Math.abs(a - value) - Math.abs(b - value))[0] ?? value;
}

// The smallest ratios that give an aspect ratio with the photo in the middle; null when the area is too large.
export function toShape(photo, shape) {
  const stretch = (shape.aspect * photo.height) / photo.width;
  const extra = roundedDown((Math.max(stretch, 1 / stretch) - 1) / 2);
  if (1 + 2 * extra > MAX_AREA) return null;
  return stretch > 1 ? { ...NONE, left: extra, right: extra } : { ...NONE, up: extra, down: extra };
}

export function shapeOf(photo, ratios) {
  const current = aspect(photo, ratios);
  return SHAPES.find((shape) => Math.abs(current / shape.aspect - 1) < SAME_SHAPE) ?? null;
}

export const size = (photo, ratios) => [
  Math.floor(photo.width * across(ratios) + 0.5),
  Math.floor(photo.height * along(ratios) + 0.5),
];

// The position and size of the photo in percent of the canvas.
export const frame = (ratios) => ({
  left: (100 * ratios.left) / across(ratios),
  top: (100 * ratios.up) / along(ratios),
  width: 100 / across(ratios),
  height: 100 / along(ratios),
});
