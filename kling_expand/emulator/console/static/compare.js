// The photo and the expanded picture in one frame, with a slider between them.

import { h } from "./dom.js";
import { measure } from "./photo.js";
import { across, along, frame } from "./geometry.js";

export class Compare {
  constructor(task) {
    const [up, down, left, right] = task.ratios;
    this.ratios = { up, down, left, right };
    this.task_id = task.task_id;
    this.index = 0;
    this.painted = false;
    this.photo = h("img", { class: "original", alt: "The uploaded photo" });
    this.before = h("div", { class: "before" }, this.photo);
    this.after = h("img", { class: "after", alt: "The expanded picture", hidden: true });
    this.slider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Before and after", hidden: true });
    this.frame = h("div", { class: "frame" }, this.before, this.after, h("span", { class: "tag left" }, "Before"), h("span", { class: "tag right" }, "After"), h("i", { class: "divide" }), this.slider);
    this.choice = h("div", { class: "chips", role: "group", "aria-label": "Image" });
    this.save = h("a", { class: "save", hidden: true, download: `${task.task_id}-0.png` }, "Save picture");
    this.element = h("figure", { class: "compare" }, this.frame, h("figcaption", {}, this.choice, this.save));
    this.slider.addEventListener("input", () => this.divide());
    this.after.addEventListener("load", () => this.reveal());
    this.divide();
    if (task.before) this.load();
  }

  load() {
    this.photo.src = `/_emulator/before/${this.task_id}`;
    this.shape();
    const place = frame(this.ratios);
    for (const [name, value] of Object.entries(place)) this.photo.style[name] = `${value}%`;
  }

  // If the photo cannot be measured, the frame has the aspect 3:2.
  async shape() {
    const { width, height } = await measure(this.photo.src).catch(() => ({ width: 3, height: 2 }));
    this.frame.style.aspectRatio = `${width * across(this.ratios)} / ${height * along(this.ratios)}`;
  }

  update(task) {
    if (task.before && !this.photo.getAttribute("src")) this.load();
    this.frame.dataset.status = task.status;
    if (task.status !== "succeed" || this.painted) return;
    this.painted = true;
    this.pick(0);
    if (task.n > 1) this.choice.append(...Array.from({ length: task.n }, (_, index) => this.button(index)));
  }

  button(index) {
    return h("button", { type: "button", "aria-pressed": String(index === 0), onclick: () => this.pick(index) }, `Image ${index + 1}`);
  }

  pick(index) {
    [...this.choice.children].forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
    this.after.src = `/_emulator/after/${this.task_id}/${index}`;
    this.save.href = this.after.src;
    this.save.download = `${this.task_id}-${index}.png`;
  }

  reveal() {
    this.after.hidden = this.slider.hidden = this.save.hidden = false;
    this.frame.classList.add("done");
  }

  divide() {
    const at = Number(this.slider.value);
    this.frame.style.setProperty("--at", `${at}%`);
    this.slider.setAttribute("aria-valuetext", `${at} percent before, ${100 - at} percent after`);
  }
}
