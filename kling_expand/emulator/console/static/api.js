// Requests to the emulator. Each returns the response's `data`, or throws an Error with a message to show.

const REPEATED = "The connection was cut and your browser sent the request again, but the task had been created already.";

async function send(method, path, body, headers = {}) {
  const options = { method, headers };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let response;
  let text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch {
    throw new Error("The connection was cut before the response. The request may have taken effect: check the tasks.");
  }
  return parse(response, text);
}

function parse(response, text) {
  let envelope;
  try {
    envelope = JSON.parse(text);
  } catch {
    throw new Error(`The response (status ${response.status}) has no documented form. The request may have taken effect: check the tasks.`);
  }
  if (/external_task_id .* already exists/.test(envelope.message)) throw new Error(REPEATED);
  if (envelope.code !== 0) throw new Error(`${response.status} / ${envelope.code}: ${envelope.message}`);
  return envelope.data;
}

export const about = () => send("GET", "/_emulator/console");
export const call = (number) => send("GET", `/_emulator/calls/${number}`);
export const advance = (seconds) => send("POST", "/_emulator/advance", { seconds });
export const addFault = (fault) => send("POST", "/_emulator/faults", fault);
export const clearFaults = () => send("DELETE", "/_emulator/faults");

// The page uses the route of the service, so faults and refusals affect it like any other client.
export const CREATE = "/v1/images/editing/expand";
export const create = (body, key) => send("POST", CREATE, body, { Authorization: `Bearer ${key}` });
