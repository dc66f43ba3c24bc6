// The canvas: the photo stays in place, and its edges follow the pointer and the keys.

import { NONE, SIDES, across, along, isUpright, maxRatio, moved, size, snapped } from "./geometry.js";
import { by, write } from "./dom.js";

// The size of the stage in canvases, so that there is room to drag an edge.
const ROOM = 1.5;
const NARROW = { below: 420, room: 1.2 }; // pixels
const PADDING = 28; // pixels
const REACH = 9; // pixels within which an edge snaps to an aspect ratio
const STEP = 0.01;
const LARGE_STEP = 0.1;
const OUTWARDS = { up: "ArrowUp", down: "ArrowDown", left: "ArrowLeft", right: "ArrowRight" };
const INWARDS = { up: "ArrowDown", down: "ArrowUp", left: "ArrowRight", right: "ArrowLeft" };

export class Stage {
  constructor(changed) {
    this.changed = changed;
    this.photo = null;
    this.ratios = NONE;
    this.drag = null;
    this.edges = Object.fromEntries(SIDES.map((side) => [side, document.querySelector(`.edge.${side}`)]));
    for (const side of SIDES) this.listen(side, this.edges[side]);
    new ResizeObserver(() => this.place(true)).observe(by("stage"));
  }

  show(photo) {
    if (this.photo) URL.revokeObjectURL(this.photo.url);
    this.photo = photo;
    by("photo").src = photo.url;
    by("canvas").hidden = false;
    by("invite").hidden = true;
    by("stage").removeAttribute("data-empty");
    this.set(NONE);
  }

  set(ratios) {
    this.ratios = ratios;
    this.place(!this.drag);
    this.describe();
    this.changed(ratios);
  }

  listen(side, edge) {
    edge.addEventListener("pointerdown", (event) => this.grab(event, side));
    edge.addEventListener("pointermove", (event) => this.pull(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      edge.addEventListener(end, () => this.release());
    }
    edge.addEventListener("keydown", (event) => this.press(event, side));
    edge.addEventListener("focus", () => this.guide(side));
    edge.addEventListener("blur", () => this.guide(null));
  }

  grab(event, side) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.edges[side].focus({ preventScroll: true });
    this.edges[side].setPointerCapture(event.pointerId);
    this.drag = { side, value: this.ratios[side], x: event.clientX, y: event.clientY };
    by("stage").classList.add("dragging");
    this.guide(side);
  }

  pull(event) {
    const drag = this.drag;
    if (!drag) return;
    const { side } = drag;
    const length = (isUpright(side) ? this.photo.height : this.photo.width) * this.scale;
    const step = isUpright(side) ? event.clientY - drag.y : event.clientX - drag.x;
    drag.x = event.clientX;
    drag.y = event.clientY;
    drag.value += (side === "up" || side === "left" ? -step : step) / length;
    const reach = event.altKey ? 0 : REACH / length;
    this.set(moved(this.ratios, side, snapped(this.photo, this.ratios, side, drag.value, reach)));
    this.guide(side);
  }

  release() {
    if (!this.drag) return;
    const { side } = this.drag;
    this.drag = null;
    by("stage").classList.remove("dragging");
    this.place(true);
    this.guide(side);
  }

  // Arrow keys along the axis move the edge where they point. The other arrow keys and the page keys change the ratio.
  press(event, side) {
    const now = this.ratios[side];
    const step = event.shiftKey ? LARGE_STEP : STEP;
    const more = isUpright(side) ? "ArrowRight" : "ArrowUp";
    const less = isUpright(side) ? "ArrowLeft" : "ArrowDown";
    const places = {
      [OUTWARDS[side]]: now + step, [INWARDS[side]]: now - step, [more]: now + step, [less]: now - step,
      PageUp: now + LARGE_STEP, PageDown: now - LARGE_STEP, Home: 0, End: maxRatio(this.ratios, side),
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.set(moved(this.ratios, side, places[event.key]));
    this.guide(side);
  }

  // Places the photo and the canvas. `fit` chooses a new scale. During a drag, the scale changes only if the canvas leaves the stage.
  place(fit) {
    if (!this.photo) return;
    const { clientWidth: wide, clientHeight: high } = by("stage");
    const canvas = [this.photo.width * across(this.ratios), this.photo.height * along(this.ratios)];
    if (fit || this.leaves(wide, high, canvas)) this.fit(wide, high, canvas, fit ? (wide < NARROW.below ? NARROW.room : ROOM) : 1);
    const { width, height } = this.photo;
    const [x, y] = this.corner;
    position(by("photo"), this.ratios.left * width * this.scale, this.ratios.up * height * this.scale, width * this.scale, height * this.scale);
    position(by("canvas"), x - this.ratios.left * width * this.scale, y - this.ratios.up * height * this.scale, canvas[0] * this.scale, canvas[1] * this.scale);
  }

  fit(wide, high, canvas, room) {
    this.scale = Math.min((wide - 2 * PADDING) / canvas[0], (high - 2 * PADDING) / canvas[1]) / room;
    this.corner = [
      (wide - canvas[0] * this.scale) / 2 + this.ratios.left * this.photo.width * this.scale,
      (high - canvas[1] * this.scale) / 2 + this.ratios.up * this.photo.height * this.scale,
    ];
  }

  leaves(wide, high, canvas) {
    const left = this.corner[0] - this.ratios.left * this.photo.width * this.scale;
    const top = this.corner[1] - this.ratios.up * this.photo.height * this.scale;
    return Math.min(left, top, wide - left - canvas[0] * this.scale, high - top - canvas[1] * this.scale) < 4;
  }

  // Shows a line at the limit of the active edge.
  guide(side) {
    const line = by("limit");
    line.hidden = !side || !this.photo;
    if (line.hidden) return;
    const { width, height } = this.photo;
    const end = maxRatio(this.ratios, side);
    const [x, y] = this.corner;
    const at = { up: y - end * height * this.scale, down: y + (1 + end) * height * this.scale,
      left: x - end * width * this.scale, right: x + (1 + end) * width * this.scale }[side];
    line.className = `limit ${side}`;
    line.style.transform = isUpright(side) ? `translateY(${at}px)` : `translateX(${at}px)`;
    line.firstElementChild.textContent = end === 2 ? "2× this side" : "3× the area";
  }

  describe() {
    for (const side of SIDES) {
      const [edge, value, end] = [this.edges[side], this.ratios[side], maxRatio(this.ratios, side)];
      const length = isUpright(side) ? "height" : "width";
      const pixels = Math.round(value * this.photo[length]);
      const full = value >= end ? ", at its limit" : "";
      edge.setAttribute("aria-valuemin", "0");
      edge.setAttribute("aria-valuemax", String(Math.max(end, value)));
      edge.setAttribute("aria-valuenow", String(value));
      edge.setAttribute("aria-valuetext", `${value} of the ${length}, ${pixels} pixels${full}; canvas ${size(this.photo, this.ratios).join(" by ")}`);
      edge.classList.toggle("full", value >= end && value > 0);
      write(edge.querySelector("b"), value > 0 ? `+${pixels}` : "");
    }
  }
}

function position(element, x, y, width, height) {
  Object.assign(element.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
}
