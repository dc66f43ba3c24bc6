// What time is it there? The emulator's clock, and the control that moves it forwards.

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
      say(`The clock was moved by ${span(seconds)}`);
    } catch (error) {
      say(error.message);
    }
  }

  render() {
    if (!this.live.state) return;
    write(by("time"), format.format(this.live.now() * 1000));
    const { moved } = this.live.state;
    write(by("moved"), moved ? `moved by ${span(moved)}` : "");
  }
}

// The two largest units that are not zero.
function span(seconds) {
  const parts = [];
  for (const [name, length] of UNITS) {
    const count = name === "s" ? +seconds.toFixed(2) : Math.floor(seconds / length);
    seconds -= count * length;
    if (count) parts.push(`${count} ${name}`);
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}
