// What is going on? Everything the emulator has told, kept up to date by server-sent events.

import { by, write } from "./dom.js";

const KEPT = 200; // calls

export class Live {
  constructor(changed) {
    this.tasks = new Map();
    this.calls = [];
    this.state = null;
    this.ahead = 0; // seconds its clock is ahead of ours
    this.changed = changed;
    const source = new EventSource("/_emulator/events");
    source.onopen = () => this.begin();
    source.onerror = () => link(source.readyState === EventSource.CLOSED ? "lost" : "waiting");
    for (const name of ["tasks", "gone", "calls", "state"]) {
      source.addEventListener(name, (event) => {
        this[`hear_${name}`](JSON.parse(event.data));
        changed(name);
      });
    }
  }

  // Each connection is told everything anew: perhaps it is another emulator by now.
  begin() {
    this.tasks.clear();
    this.calls = [];
    link("live");
  }

  hear_tasks(tasks) {
    for (const task of tasks) this.tasks.set(task.task_id, task);
  }

  hear_gone(ids) {
    for (const id of ids) this.tasks.delete(id);
  }

  hear_calls(calls) {
    this.calls = [...calls.reverse(), ...this.calls].slice(0, KEPT);
  }

  hear_state(state) {
    this.state = state;
    this.ahead = state.now - Date.now() / 1000;
  }

  now() {
    return Date.now() / 1000 + this.ahead;
  }

  newest() {
    return [...this.tasks.values()].sort((a, b) => (a.task_id < b.task_id ? 1 : -1));
  }
}

const WORDS = { live: "Live", waiting: "Connecting", lost: "Not connected" };

function link(state) {
  by("link").dataset.state = state;
  write(by("link"), WORDS[state]);
}
