// The list of tasks, and the details of the selected one.

import { by, h, keyed, say, write } from "./dom.js";
import { Compare } from "./compare.js";

const THUMBNAILS = 20;
const WORDS = { submitted: "Submitted", processing: "Processing", succeed: "Succeeded", failed: "Failed" };
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const isOpen = (task) => task.status === "submitted" || task.status === "processing";

export class Tasks {
  constructor(live, selected) {
    this.live = live;
    this.selected = selected;
    this.shown = null;
    this.statuses = new Map();
    setInterval(() => this.tick(), 200);
  }

  select(task_id) {
    this.shown = task_id;
    this.selected(task_id);
    this.render();
  }

  render() {
    const tasks = this.live.newest();
    by("tasks-empty").hidden = tasks.length > 0;
    const running = tasks.filter(isOpen).length;
    write(by("tasks-count"), tasks.length ? `${tasks.length}${running ? `, ${running} running` : ""}` : "");
    let place = 0;
    keyed(by("task-list"), tasks, (task) => task.task_id, (task) => this.row(task, place++ < THUMBNAILS), (row, task) => this.update(row, task));
    this.announce(tasks);
    this.detail();
  }

  row(task, pictured) {
    const picture = pictured && task.before ? h("img", { src: `/_emulator/before/${task.task_id}`, alt: "", loading: "lazy" }) : h("span", { class: "blank" });
    const text = h("span", { class: "text" }, h("b", {}, task.prompt || "No prompt"), h("span", { class: "quiet" }));
    return h("li", {}, h("button", { type: "button", onclick: () => this.select(task.task_id) }, picture, text, h("span", { class: "badge" })));
  }

  update(row, task) {
    row.firstElementChild.setAttribute("aria-current", String(task.task_id === this.shown));
    const images = task.n > 1 ? `${task.n} images, ` : "";
    write(row.querySelector(".quiet"), `${images}${clock.format(task.created_at * 1000)}, …${task.task_id.slice(-6)}`);
    badge(row.querySelector(".badge"), task.status);
  }

  announce(tasks) {
    for (const task of tasks) {
      const before = this.statuses.get(task.task_id);
      if (before && before !== task.status && !isOpen(task)) say(`Task ${task.task_id.slice(-6)}: ${WORDS[task.status]}`);
      this.statuses.set(task.task_id, task.status);
    }
  }

  detail() {
    const task = this.live.tasks.get(this.shown);
    if (!task) return this.none();
    write(by("result-id"), task.task_id);
    by("result-badge").hidden = false;
    badge(by("result-badge"), task.status);
    if (this.view?.task_id !== task.task_id) {
      this.view = new View(task);
      by("result-body").replaceChildren(this.view.element);
    }
    this.view.update(task, this.live.now());
  }

  none() {
    if (!this.view) return;
    this.view = null;
    by("result-badge").hidden = true;
    write(by("result-id"), "");
    by("result-body").replaceChildren(h("p", { class: "empty" }, "This task has expired: tasks are kept for 30 days."));
  }

  tick() {
    const task = this.live.tasks.get(this.shown);
    if (task && this.view && isOpen(task)) this.view.update(task, this.live.now());
  }
}

class View {
  constructor(task) {
    this.task_id = task.task_id;
    this.compare = new Compare(task);
    this.bar = h("div", { class: "progress" }, h("i"));
    this.steps = h("ol", { class: "steps" });
    this.failure = h("p", { class: "error" });
    this.element = h("div", { class: "view" }, this.compare.element, this.failure, this.bar, this.steps, facts(task));
  }

  update(task, now) {
    this.compare.update(task);
    write(this.failure, task.failure && task.status === "failed" ? task.failure : "");
    this.bar.hidden = !isOpen(task);
    const span = Math.max(task.due_at - task.created_at, 0.001);
    this.bar.firstElementChild.style.transform = `scaleX(${Math.min(1, Math.max(0.02, (now - task.created_at) / span))})`;
    const ends = isOpen(task) ? now : task.ended_at;
    const queued = Math.max(0, Math.min(task.starts_at, ends) - task.created_at);
    const rows = [["Created", clock.format(task.created_at * 1000)], ["Queued for", seconds(queued)]];
    if (task.status !== "submitted") rows.push(["Processed for", seconds(ends - task.starts_at)]);
    if (!isOpen(task)) rows.push(["Total", seconds(ends - task.created_at)]);
    keyed(this.steps, rows, (row) => row[0], (row) => h("li", {}, h("span", {}, row[0]), h("b")), (item, row) => write(item.lastElementChild, row[1]));
  }
}

function facts(task) {
  const rows = [["Ratios", ["up", "down", "left", "right"].map((side, i) => `${side} ${task.ratios[i]}`).join(", ")], ["Prompt", task.prompt],
    ["External id", task.external_task_id], ["Image", task.image_url], ["Dialect", task.dialect], ["Engine", task.engine]];
  return h("dl", { class: "facts" }, ...rows.filter((row) => row[1]).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function badge(element, status) {
  write(element, WORDS[status]);
  element.dataset.status = status;
}

function seconds(value) {
  const whole = Math.max(0, value);
  return whole < 100 ? `${whole.toFixed(2)} s` : `${Math.round(whole)} s`;
}
