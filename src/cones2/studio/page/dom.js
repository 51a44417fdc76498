/** Small helpers over the DOM: elements, icons, toasts, the one line that is spoken. No text ever becomes HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * The first element that a selector finds.
 * @param {string} selector
 * @param {ParentNode} [root]
 * @returns {any}
 */
export const $ = (selector, root = document) => root.querySelector(selector);

/**
 * @param {Element} element
 * @param {Record<string, any>} attributes functions are listeners, `class` may hold undefined, false leaves out
 * @param {any[]} children nodes and texts; empty ones are left out
 */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") /** @type {any} */ (element).value = value;
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Build an HTML element.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...any} children
 * @returns {any}
 */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/**
 * Build an SVG element.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...any} children
 * @returns {any}
 */
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/**
 * Put other children into an element; null and false are left out.
 * @param {Element} element
 * @param {...any} children
 */
export const put = (element, ...children) => element.replaceChildren(...children.flat().filter((child) => child || child === 0));

/**
 * One of the symbols of index.html.
 * @param {string} name
 */
export const icon = (name) =>
  s("svg", { class: "icon", "aria-hidden": "true" }, s("use", { href: `#i-${name}` }));

/**
 * A button that shows an icon; its label is spoken, and shown on hovering.
 * @param {string} name of the icon
 * @param {string} label
 * @param {(event: Event) => void} onclick
 * @param {Record<string, any>} [more]
 */
export const iconButton = (name, label, onclick, more = {}) =>
  h("button", { type: "button", class: "ghost square", "aria-label": label, title: label, onclick, ...more }, icon(name));

/**
 * Say something to those who listen, once.
 * @param {string} text
 */
export function announce(text) {
  const line = $("#live");
  line.textContent = line.textContent === text ? `${text}\u00a0` : text;
}

/**
 * Show a short message for some seconds, and say it.
 * @param {string} text
 * @param {{action?: string, run?: () => void, bad?: boolean}} [more] a button beside it
 */
export function toast(text, { action, run, bad = false } = {}) {
  const close = () => {
    clearTimeout(timer);
    box.remove();
  };
  const act = action && h("button", { type: "button", class: "link", onclick: () => (close(), run?.()) }, action);
  const box = h("div", { class: `toast${bad ? " bad" : ""}` }, h("span", {}, text), act || null,
    iconButton("close", "Dismiss", close));
  const timer = setTimeout(close, action || bad ? 12000 : 5000);
  const topmost = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  const holder = $("#toasts");
  topmost.append(holder); // what lies behind a modal dialog can't be pressed
  holder.append(box);
  while (holder.children.length > 3) holder.firstChild.remove();
  announce(text);
}

/**
 * Run something that asks the server; what goes wrong is shown.
 * @template T
 * @param {() => Promise<T>} run
 * @returns {Promise<T | undefined>}
 */
export async function attempt(run) {
  try {
    return await run();
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { bad: true });
    return undefined;
  }
}

/**
 * Open a modal dialog; where it closes, focus goes back to what had it.
 * @param {HTMLDialogElement} dialog
 */
export function openDialog(dialog) {
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  dialog.showModal();
  dialog.addEventListener("close", () => {
    if ($("#toasts").closest("dialog") === dialog) document.body.append($("#toasts"));
    if (before?.isConnected) before.focus();
  }, { once: true });
}

/**
 * Ask for one line of text.
 * @param {string} title
 * @param {string} label
 * @param {string} value
 * @param {string} [button]
 * @returns {Promise<string | null>} null where it was dismissed
 */
export function ask(title, label, value, button = "Save") {
  return new Promise((resolve) => {
    const field = h("input", { id: "asked", value, autocomplete: "off", spellcheck: "false" });
    const close = (/** @type {string | null} */ answer) => () => (resolve(answer), dialog.close());
    const dialog = h("dialog", { class: "small", "aria-labelledby": "ask-title", onclose: () => (resolve(null), dialog.remove()) },
      h("form", { onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), close(field.value.trim())()) },
        h("h2", { id: "ask-title" }, title), h("label", { for: "asked" }, label), field,
        h("div", { class: "row end" }, h("button", { type: "button", onclick: close(null) }, "Cancel"),
          h("button", { class: "primary" }, button))));
    document.body.append(dialog);
    openDialog(dialog);
    field.select();
  });
}

/** Whether a key belongs to a field in which one writes.
 * @param {EventTarget | null} target
 */
export const isField = (target) =>
  target instanceof HTMLElement && target.matches("input:not([type=checkbox],[type=range],[type=radio]), textarea, select");

/**
 * Save a file on the person's machine.
 * @param {string} name
 * @param {Blob} content
 */
export function saveFile(name, content) {
  const url = URL.createObjectURL(content);
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} min`;
}
