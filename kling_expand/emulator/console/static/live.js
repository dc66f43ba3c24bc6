// The state of the emulator, kept up to date by server-sent events.

import { by, write } from "./dom.js";

const MAX_CALLS = 200;

export class Live {
  constructor(changed) {
    this.tasks = new Map();
    this.calls = [];
    this.state = null;
    this.ahead = 0; // seconds by which the emulator's clock is ahead of the browser's
    this.changed = changed;
    const source = new EventSource("/_emulator/events");
    source.onopen = () => this.begin();
    source.onerror = () => link(source.readyState === EventSource.CLOSED ? "lost" : "waiting");
    for (const name of ["tasks", "removed", "calls", "state"]) {
      source.addEventListener(name, (event) => {
        this[`on_${name}`](JSON.parse(event.data));
        changed(name);
      });
    }
  }

  // Each connection starts with an empty state, because the emulator may be another one.
  begin() {
    this.tasks.clear();
    this.calls = [];
    link("live");
  }

  on_tasks(tasks) {
    for (const task of tasks) this.tasks.set(task.task_id, task);
  }

  on_removed(ids) {
    for (const id of ids) this.tasks.delete(id);
  }

  on_calls(calls) {
    this.calls = [...calls.reverse(), ...this.calls].slice(0, MAX_CALLS);
  }

  on_state(state) {
    this.state = state;
    this.ahead = state.now - Date.now() / 1000;
  }

  now() {
    return Date.now() / 1000 + this.ahead;
  }

  newest() {
    return [...this.tasks.values()].sort((a, b) => b.created_at - a.created_at || (a.task_id < b.task_id ? 1 : -1));
  }
}

const WORDS = { live: "Live", waiting: "Connecting", lost: "Not connected" };

function link(state) {
  by("link").dataset.state = state;
  write(by("link"), WORDS[state]);
}
