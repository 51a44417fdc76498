/** Talking to the server: requests, problems in plain words, and the one stream of events. */

/** An answer that is not a success, with what the server says of it. */
export class Problem extends Error {
  /**
   * @param {number} status 0 where no server answered
   * @param {string} text
   * @param {{path?: string, got?: unknown, expected?: string, hint?: string}[]} [errors]
   */
  constructor(status, text, errors = []) {
    super(text);
    this.status = status;
    this.errors = errors;
  }
}

/**
 * @param {Response} response
 * @returns {Promise<Problem>}
 */
async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const first = body.errors?.[0];
  const more = first && [first.path, first.expected && `expected ${first.expected}`, first.hint].filter(Boolean).join(": ");
  const wait = response.headers.get("Retry-After");
  const text = [body.detail || body.title || `The server answered ${response.status}.`,
    more && !String(body.detail).includes(more) && `(${more})`,
    response.status === 429 && wait && `Try again in ${wait} s.`,
    response.status === 401 && "Open the address that cones2 studio printed once more."];
  return new Problem(response.status, text.filter(Boolean).join(" "), body.errors);
}

/**
 * Ask the server for something.
 * @param {string} method
 * @param {string} path
 * @param {any} [body] JSON, or a form with files
 * @param {Record<string, string>} [headers]
 * @returns {Promise<any>} the JSON of the answer; null where it has none
 */
export async function call(method, path, body, headers = {}) {
  const isForm = body instanceof FormData;
  /** @type {Response} */
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: { ...(body && !isForm ? { "Content-Type": "application/json" } : {}), ...headers },
      body: body === undefined ? undefined : isForm ? body : JSON.stringify(body),
    });
  } catch {
    throw new Problem(0, "The server does not answer. What you made is kept here; try again when it is back.");
  }
  if (!response.ok) throw await problemOf(response);
  return response.status === 204 ? null : response.json();
}

/** @param {string} path */
export const get = (path) => call("GET", path);
/**
 * @param {string} path
 * @param {any} [body]
 * @param {Record<string, string>} [headers]
 */
export const post = (path, body, headers) => call("POST", path, body, headers);
/**
 * @param {string} path
 * @param {any} body
 */
export const patch = (path, body) => call("PATCH", path, body);
/** @param {string} path */
export const remove = (path) => call("DELETE", path);

/** @param {Record<string, any>} fields lists of files under one name; undefined leaves out */
export function form(fields) {
  const made = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || value === null || value === "") continue;
    for (const each of Array.isArray(value) ? value : [value]) made.append(name, each);
  }
  return made;
}

const KINDS = ["snapshot", "state", "progress", "preview", "result", "subjects", "worker"];

/**
 * Listen to the server; a lost connection is taken up again, by the browser or, where it gave up, by us.
 * @param {(kind: string, data: any) => void} heard
 * @param {(connected: boolean) => void} changed
 */
export function listen(heard, changed) {
  /** @type {EventSource} */
  let source;
  let wait = 1000;
  const open = () => {
    source = new EventSource("/v1/events");
    source.onopen = () => {
      wait = 1000;
      changed(true);
    };
    source.onerror = () => {
      changed(false);
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(open, wait);
      wait = Math.min(wait * 2, 15000);
    };
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => heard(kind, JSON.parse(/** @type {MessageEvent} */ (event).data)));
    }
  };
  open();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => event.persisted && open());
}
