// The form that adds faults, and the list of planned faults.

import { addFault, clearFaults } from "./api.js";
import { by, h, say, write } from "./dom.js";

const NUMBERS = ["code", "seconds", "retry_after"];
const CALLS = { create: "create", query: "query", list: "list", file: "download" };
const label = (id) => by(id).closest("label");

export class FaultPanel {
  constructor() {
    this.kinds = [];
    by("fault-route").addEventListener("change", () => this.offer());
    by("fault-kind").addEventListener("change", () => this.ask());
    by("fault-mode").addEventListener("change", () => this.ask());
    by("fault").addEventListener("submit", (event) => this.add(event));
    by("clear").addEventListener("click", () => this.clear());
  }

  know({ faults, codes }) {
    this.kinds = faults.filter((each) => each.kind !== "ok");
    by("fault-code").replaceChildren(...codes.map(({ code, text }) => h("option", { value: code }, `${code} ${text}`)));
    this.offer();
  }

  // Offers the faults that fit the chosen call.
  offer() {
    const kinds = this.kinds.filter((each) => each.routes.includes(by("fault-route").value));
    const before = by("fault-kind").value;
    by("fault-kind").replaceChildren(...kinds.map(({ kind }) => h("option", { value: kind }, kind.replaceAll("_", " "))));
    if (kinds.some(({ kind }) => kind === before)) by("fault-kind").value = before;
    this.ask();
  }

  // Shows the fields of the chosen fault.
  ask() {
    const chosen = this.kind();
    write(by("fault-help"), `${chosen.help[0].toUpperCase()}${chosen.help.slice(1)}.`);
    for (const name of NUMBERS) {
      const field = chosen.fields.find((each) => each.name === name);
      label(`fault-${name}`).hidden = !field;
      if (field && !by(`fault-${name}`).value) by(`fault-${name}`).value = field.default ?? "";
      if (field && name === "code" && this.asked !== chosen.kind) by("fault-code").value = field.default;
    }
    this.asked = chosen.kind;
    const mode = by("fault-mode").value;
    label("fault-times").hidden = mode !== "times";
    label("fault-duration").hidden = mode !== "duration";
    label("fault-percent").hidden = mode !== "chance";
  }

  kind() {
    return this.kinds.find(({ kind }) => kind === by("fault-kind").value);
  }

  fault() {
    const fault = { route: by("fault-route").value, kind: this.kind().kind };
    for (const { name } of this.kind().fields) {
      const value = by(`fault-${name}`).value;
      if (value) fault[name] = name === "retry_after" ? value : Number(value);
    }
    const mode = by("fault-mode").value;
    if (mode === "times") fault.times = Number(by("fault-times").value);
    if (mode === "duration") fault.duration = Number(by("fault-duration").value);
    if (mode === "chance") fault.probability = Number(by("fault-percent").value) / 100;
    return fault;
  }

  async add(event) {
    event.preventDefault();
    await this.attempt(() => addFault(this.fault()), "Fault added");
  }

  async clear() {
    await this.attempt(clearFaults, "All faults cleared");
    by("fault-route").focus();
  }

  async attempt(what, done) {
    try {
      await what();
      write(by("fault-error"), "");
      say(done);
    } catch (error) {
      write(by("fault-error"), error.message);
    }
  }

  render(faults) {
    const rows = Object.entries(faults).flatMap(([route, { script, more, timed, chances }]) => [
      ...script.map((fault) => row(route, fault, fault.times > 1 ? `next ${fault.times} calls` : "next call")),
      ...(more ? [row(route, { kind: `${more} more` }, "after these")] : []),
      ...timed.map((fault) => row(route, fault, `all calls for ${Math.ceil(fault.seconds_left)} s`)),
      ...chances.map((fault) => row(route, fault, `${+(fault.probability * 100).toFixed(2)} % of calls`)),
    ]);
    by("planned").replaceChildren(...rows);
    by("clear").hidden = rows.length === 0;
    write(by("faults-count"), rows.length ? `${rows.length} planned` : "No faults planned");
  }
}

function row(route, fault, when) {
  const hasCode = ["error", "error_after", "envelope_200"].includes(fault.kind);
  return h("li", {}, h("b", {}, CALLS[route]), h("span", {}, fault.kind.replaceAll("_", " "), hasCode ? ` ${fault.code}` : ""), h("span", { class: "quiet" }, when));
}
