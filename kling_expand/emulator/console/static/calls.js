// The list of API calls. The headers and bodies of a call are fetched when it is opened.

import { by, h, keyed } from "./dom.js";
import { call } from "./api.js";

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export class Calls {
  constructor(live) {
    this.live = live;
    this.task_id = null;
    by("calls-mine").addEventListener("change", () => this.render());
  }

  show(task_id) {
    this.task_id = task_id;
    this.render();
  }

  render() {
    const selectedOnly = by("calls-mine").checked;
    const calls = this.live.calls.filter((each) => !selectedOnly || each.task_id === this.task_id);
    by("calls-empty").hidden = calls.length > 0;
    keyed(by("call-list"), calls, (each) => each.number, row, () => {});
  }
}

function row(each) {
  const status = each.status === null ? "cut" : String(each.status);
  const kind = each.status === null ? "bad" : each.status >= 400 || each.fault ? "odd" : "good";
  const summary = h("summary", {},
    h("span", { class: "status", "data-kind": kind }, status),
    h("code", {}, `${each.method} ${each.path}`),
    each.fault && h("span", { class: "fault" }, each.fault),
    h("span", { class: "quiet" }, `${milliseconds(each.seconds)}, ${clock.format(each.started_at * 1000)}`));
  const details = h("details", {}, summary);
  details.addEventListener("toggle", () => fill(details, each.number), { once: true });
  return h("li", {}, details);
}

async function fill(details, number) {
  try {
    const { request, response } = await call(number);
    details.append(...side("Request", request), ...side("Response", response));
  } catch (error) {
    details.append(h("p", { class: "error" }, `This call is no longer in the log (${error.message})`));
  }
}

function side(name, { headers, body }) {
  const lines = Object.entries(headers).map(([key, value]) => `${key}: ${value}`);
  const label = `${lines.length} ${name.toLowerCase()} headers`;
  const more = h("details", {}, h("summary", {}, label), h("pre", { tabindex: 0, "aria-label": label }, lines.join("\n")));
  return [h("h3", {}, name), h("pre", { tabindex: 0, "aria-label": name }, body || "(no body)"), lines.length > 0 && more].filter(Boolean);
}

const milliseconds = (seconds) => (seconds < 1 ? `${(seconds * 1000).toFixed(1)} ms` : `${seconds.toFixed(2)} s`);
