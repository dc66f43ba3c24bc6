// How is the emulator asked? Each answer is its `data`, each refusal an Error with a sentence.

const REPEATED = "The connection was cut, your browser asked again, and the emulator had made the task already.";

async function ask(method, path, body, headers = {}) {
  const options = { method, headers };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer;
  let text;
  try {
    answer = await fetch(path, options);
    text = await answer.text();
  } catch {
    throw new Error("The connection was cut before there was an answer. Perhaps it took effect: look at the tasks.");
  }
  return opened(answer, text);
}

function opened(answer, text) {
  let envelope;
  try {
    envelope = JSON.parse(text);
  } catch {
    throw new Error(`The answer (${answer.status}) is not the documented one. Perhaps the call took effect: look at the tasks.`);
  }
  if (/external_task_id .* already exists/.test(envelope.message)) throw new Error(REPEATED);
  if (envelope.code !== 0) throw new Error(`${answer.status} / ${envelope.code}: ${envelope.message}`);
  return envelope.data;
}

export const about = () => ask("GET", "/_emulator/console");
export const call = (number) => ask("GET", `/_emulator/calls/${number}`);
export const advance = (seconds) => ask("POST", "/_emulator/advance", { seconds });
export const addFault = (fault) => ask("POST", "/_emulator/faults", fault);
export const clearFaults = () => ask("DELETE", "/_emulator/faults");

// The service's own route, so that its faults and refusals meet this page like any other client.
export const CREATE = "/v1/images/editing/expand";
export const create = (order, key) => ask("POST", CREATE, order, { Authorization: `Bearer ${key}` });
