// The emulator's clock, and the form that moves it forward.

import { advance } from "./api.js";
import { by, say, write } from "./dom.js";

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

export class Clock {
  constructor(live) {
    this.live = live;
    setInterval(() => this.render(), 500);
    by("clock").addEventListener("click", (event) => {
      const { seconds } = event.target.dataset;
      if (seconds) this.move(Number(seconds));
    });
    by("clock").addEventListener("submit", (event) => {
      event.preventDefault();
      this.move(by("move").valueAsNumber);
    });
  }

  async move(seconds) {
    try {
      await advance(seconds);
      say(`Clock advanced by ${span(seconds)}`);
    } catch (error) {
      say(error.message);
    }
  }

  render() {
    if (!this.live.state) return;
    write(by("time"), format.format(this.live.now() * 1000));
    const offset = this.live.state.clock_offset;
    write(by("moved"), offset ? `(advanced by ${span(offset)})` : "");
  }
}

// Formats a duration in its two largest units that are not zero.
function span(seconds) {
  const parts = [];
  for (const [name, length] of UNITS) {
    const count = name === "s" ? +seconds.toFixed(2) : Math.floor(seconds / length);
    seconds -= count * length;
    if (count) parts.push(`${count} ${name}`);
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}
