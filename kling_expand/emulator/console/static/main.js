// The page: photo → canvas → request → task → result.

import { about, create } from "./api.js";
import { Calls } from "./calls.js";
import { Clock } from "./clock.js";
import { by, h, say, write } from "./dom.js";
import { FaultPanel } from "./faults.js";
import { MAX_AREA, NONE, SHAPES, SIDES, area, moved, shapeOf, size, toShape } from "./geometry.js";
import { Live } from "./live.js";
import * as photos from "./photo.js";
import * as snippets from "./snippets.js";
import { Stage } from "./stage.js";
import { Tasks } from "./tasks.js";

const UNITS = 8;
const DOLLARS = 0.028;
let key = "";
let pending = ""; // the external_task_id of the last request, until its task appears
let language = "curl";

const stage = new Stage(show);
const live = new Live(changed);
const calls = new Calls(live);
const tasks = new Tasks(live, (task_id) => calls.show(task_id));
const clock = new Clock(live);
const faults = new FaultPanel();

function changed(what) {
  if (what === "tasks") find();
  if (what === "tasks" || what === "removed") tasks.render();
  if (what === "calls") calls.render();
  if (what === "state") summarize(live.state);
}

function summarize({ account, slots, faults: planned }) {
  write(by("count-open"), String(account.open_tasks));
  write(by("count-slots"), `${account.used_slots} of ${slots}`);
  write(by("count-units"), String(account.units_billed));
  write(by("count-refused"), String(Object.values(account.refusals).reduce((sum, count) => sum + count, 0)));
  faults.render(planned);
  clock.render();
}

async function loadPhoto(promise) {
  try {
    const photo = await promise;
    write(by("photo-error"), "");
    write(by("photo-name"), `${photo.name}, ${photo.width} × ${photo.height}`);
    by("order").hidden = by("code").hidden = by("another").hidden = false;
    for (const button of by("shapes").children) button.disabled = !toShape(photo, SHAPES.find(({ name }) => name === button.dataset.shape));
    stage.show(photo);
    say(`${photo.name} is on the canvas`);
  } catch (error) {
    write(by("photo-error"), error.message);
  }
}

const words = () => ({ prompt: by("prompt").value.trim(), n: Number(by("n").value) });

// Shows everything that depends on the ratios.
function show(ratios) {
  const { photo } = stage;
  const shape = shapeOf(photo, ratios);
  const now = area(ratios);
  for (const side of SIDES) {
    const input = by(`ratio-${side}`);
    if (document.activeElement !== input) input.value = ratios[side];
  }
  for (const button of by("shapes").children) button.setAttribute("aria-pressed", String(button.dataset.shape === shape?.name));
  write(by("size"), `${size(photo, ratios).join(" × ")}${shape ? `, ${shape.name}` : ""}`);
  by("meter").setAttribute("aria-valuenow", now.toFixed(2));
  by("meter").setAttribute("aria-valuetext", `${now.toFixed(2)} times the photo, of at most 3`);
  by("meter").classList.toggle("full", now > MAX_AREA - 0.005);
  by("meter").firstElementChild.style.transform = `scaleX(${(now - 1) / (MAX_AREA - 1)})`;
  write(by("area"), `${now.toFixed(2)}× of 3×`);
  by("expand").disabled = now === 1;
  price();
  code();
}

function price() {
  const { n } = words();
  const idle = area(stage.ratios) === 1;
  write(by("price"), idle ? "Drag an edge first" : `The service would bill ${UNITS * n} units ($${(DOLLARS * n).toFixed(3)})`);
}

function code() {
  if (!stage.photo) return;
  write(by("snippet"), snippets[language](stage.photo, stage.ratios, words(), key));
}

// An external_task_id identifies the task even when the response is lost. A browser repeats a request whose
// connection was cut; the id prevents a second task.
async function expand(event) {
  event.preventDefault();
  by("expand").disabled = true;
  write(by("order-error"), "");
  pending = `console-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
  const request = { external_task_id: pending, ...snippets.body(stage.ratios, words()) };
  try {
    await create({ image: stage.photo.base64, ...request }, key);
  } catch (error) {
    write(by("order-error"), error.message);
  } finally {
    by("expand").disabled = false;
  }
}

function find() {
  const task = live.newest().find((each) => each.external_task_id === pending);
  if (!pending || !task) return;
  pending = "";
  tasks.select(task.task_id);
  scrollTo(by("result"));
  say("Task created");
}

// On a narrow screen the result is below the canvas.
function scrollTo(card) {
  const { top } = card.getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.8) card.scrollIntoView();
}

function listenToPhotos() {
  const file = by("file");
  for (const id of ["choose", "another"]) by(id).addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files.length) loadPhoto(photos.read(file.files[0]));
    file.value = "";
  });
  // The whole page accepts a photo, because the browser would open a photo dropped beside the canvas.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    by("stage").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) by("stage").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    by("stage").classList.remove("over");
    if (event.dataTransfer.files.length) loadPhoto(photos.read(event.dataTransfer.files[0]));
  });
}

function listenToForm() {
  by("shapes").append(...SHAPES.map((shape) => h("button", { type: "button", "data-shape": shape.name, "aria-pressed": "false", onclick: () => stage.set(toShape(stage.photo, shape)) }, shape.name)));
  by("n").append(...Array.from({ length: 9 }, (_, index) => h("option", {}, String(index + 1))));
  for (const side of SIDES) {
    const input = by(`ratio-${side}`);
    input.addEventListener("input", () => stage.set(moved(stage.ratios, side, input.valueAsNumber)));
    input.addEventListener("change", () => (input.value = stage.ratios[side]));
  }
  for (const id of ["prompt", "n"]) {
    by(id).addEventListener("input", () => {
      price();
      code();
    });
  }
  by("reset").addEventListener("click", () => stage.set(NONE));
  by("order").addEventListener("submit", expand);
}

function listenToCode() {
  const buttons = document.querySelectorAll("[data-language]");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      language = button.dataset.language;
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
      code();
    });
  }
  by("copy").addEventListener("click", async () => {
    const done = (await copied(by("snippet").textContent)) ? "Copied" : "Selected";
    if (done === "Selected") getSelection().selectAllChildren(by("snippet"));
    say(done);
    write(by("copy"), done);
    setTimeout(() => write(by("copy"), "Copy"), 1500);
  });
}

// Browsers deny the clipboard to pages without TLS, except on localhost.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

listenToPhotos();
listenToForm();
listenToCode();
const known = await about();
key = known.api_key;
write(by("engine"), known.engine);
faults.know(known);
by("samples").append(...known.samples.map((name) => {
  const path = `/console/${name}`;
  const title = name.split("/").pop().replace(".jpg", "");
  return h("li", {}, h("button", { type: "button", onclick: () => loadPhoto(photos.sample(path)) }, h("img", { src: path, alt: "" }), h("span", {}, title)));
}));
code();
document.documentElement.dataset.ready = "yes";
