// What shall go wrong? A form that adds faults, and those that wait.

import { addFault, clearFaults } from "./api.js";
import { by, h, say, write } from "./dom.js";

const NUMBERS = ["code", "seconds", "retry_after"];
const CALLS = { create: "create", query: "read", list: "list", file: "download" };
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

  // What can happen to this kind of call.
  offer() {
    const kinds = this.kinds.filter((each) => each.routes.includes(by("fault-route").value));
    const before = by("fault-kind").value;
    by("fault-kind").replaceChildren(...kinds.map(({ kind }) => h("option", { value: kind }, kind.replaceAll("_", " "))));
    if (kinds.some(({ kind }) => kind === before)) by("fault-kind").value = before;
    this.ask();
  }

  // Show the fields that this fault has.
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
    const chance = by("fault-mode").value === "chance";
    label("fault-percent").hidden = !chance;
    label("fault-times").hidden = chance;
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
    if (by("fault-mode").value === "chance") fault.probability = Number(by("fault-percent").value) / 100;
    else fault.times = Number(by("fault-times").value);
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
    const rows = Object.entries(faults).flatMap(([route, { script, chances, left_out }]) => [
      ...script.map((fault) => row(route, fault, fault.times > 1 ? `next ${fault.times} calls` : "next call")),
      ...(left_out ? [row(route, { kind: `${left_out} more` }, "after these")] : []),
      ...chances.map((fault) => row(route, fault, `${+(fault.probability * 100).toFixed(2)} % of calls`)),
    ]);
    by("waiting").replaceChildren(...rows);
    by("clear").hidden = rows.length === 0;
    write(by("faults-count"), rows.length ? `${rows.length} waiting` : "Nothing goes wrong");
  }
}

function row(route, fault, when) {
  const by_code = ["error", "error_after", "envelope_200"].includes(fault.kind);
  return h("li", {}, h("b", {}, CALLS[route]), h("span", {}, fault.kind.replaceAll("_", " "), by_code ? ` ${fault.code}` : ""), h("span", { class: "quiet" }, when));
}
