/** The strip of pictures: filters, a roving focus, a selection by Shift, and the two to compare. */

import { $, h, icon } from "./dom.js";
import { discard, edit, filter, listed, more, pictureOf, thumbUrl } from "./pictures.js";
import { on, server } from "./store.js";
import { openPicture } from "./viewer.js";

/** @type {Set<string>} */
const chosen = new Set();
let anchor = "";
let focusAt = "";
/** @type {Map<string, {element: any, look: string}>} */
const items = new Map();

/** @param {any} picture */
function itemFor(picture) {
  const look = `${picture.starred}${picture.note}${chosen.has(picture.id)}`;
  const known = items.get(picture.id);
  if (known?.look === look) return known.element;
  const label = `${picture.prompt}, seed ${picture.seed}${picture.starred ? ", starred" : ""}`;
  const element = h("li", { role: "option", class: `picture${chosen.has(picture.id) ? " chosen" : ""}`, "data-id": picture.id, tabindex: "-1",
    "aria-selected": chosen.has(picture.id), "aria-label": label, title: picture.prompt },
    h("img", { src: thumbUrl(picture.id), alt: "", loading: "lazy", decoding: "async", width: 128, height: 128 }), picture.starred ? icon("star") : null);
  if (known) {
    known.element.replaceWith(element);
    if (focusAt === picture.id && document.activeElement === document.body) element.focus();
  }
  items.set(picture.id, { element, look });
  return element;
}

/** The pictures that pass the filter; only those in view have elements, so that thousands scroll as well as ten.
 * @type {any[]}
 */
let shown = [];

/** What is in view: how many stand in a row, which rows, and the length of a row. */
function view() {
  const open = $("#gallery").classList.contains("open");
  const scroller = $("#gallery-scroll");
  const cell = open ? 136 : 96;
  const across = open ? Math.max(1, Math.floor((scroller.clientWidth - 6) / cell)) : 1;
  const [from, length] = open ? [scroller.scrollTop, scroller.clientHeight] : [scroller.scrollLeft, scroller.clientWidth];
  const rows = Math.ceil(shown.length / across);
  const first = Math.min(Math.max(0, Math.floor(from / cell) - 3), rows);
  const last = Math.min(rows, Math.max(first, Math.ceil((from + length) / cell) + 3));
  return { open, scroller, cell, across, rows, first, last, length, from };
}

let drawn = "";
/** Give elements to what is in view, and room to the rest. */
function renderView() {
  const list = $("#pictures");
  const { open, cell, across, rows, first, last } = view();
  const part = shown.slice(first * across, last * across);
  const hadFocus = list.contains(document.activeElement);
  const elements = part.map(itemFor);
  const [before, after] = [`${3 + first * cell}px`, `${3 + (rows - last) * cell}px`];
  list.style.padding = open ? `${before} 3px ${after}` : `3px ${after} 3px ${before}`;
  elements.forEach((element, at) => {
    element.setAttribute("aria-posinset", String(first * across + at + 1));
    element.setAttribute("aria-setsize", String(shown.length));
    if (list.children[at] !== element) list.insertBefore(element, list.children[at] ?? null);
  });
  while (list.children.length > elements.length) list.lastChild.remove();
  for (const id of items.keys()) if (!part.some((picture) => picture.id === id)) items.delete(id);
  const stop = part.some((picture) => picture.id === focusAt) ? focusAt : part[0]?.id;
  for (const element of elements) element.tabIndex = element.dataset.id === stop ? 0 : -1;
  if (hadFocus && !list.contains(document.activeElement)) (items.get(focusAt)?.element ?? list).focus({ preventScroll: true });
  drawn = `${first} ${last} ${across}`;
  if (last >= rows - 2) void more();
}

function render() {
  shown = listed();
  const ids = new Set(shown.map((picture) => picture.id));
  for (const id of chosen) if (!ids.has(id)) chosen.delete(id);
  if (!ids.has(focusAt)) focusAt = shown[0]?.id ?? "";
  const filtered = filter.starred || filter.subject;
  $("#pictures-empty").hidden = shown.length > 0;
  $("#pictures-empty").textContent = filtered ? "No picture passes the filter." : "No pictures yet. What you make stays here.";
  $("#pictures").hidden = shown.length === 0;
  $("#compare").hidden = chosen.size !== 2;
  $("#delete-chosen").hidden = chosen.size === 0;
  $("#delete-chosen").textContent = `Delete ${chosen.size}`;
  renderView();
}

let waiting = false;
function onScroll() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const { first, last, across } = view();
    if (drawn !== `${first} ${last} ${across}`) renderView();
  });
}

/** @param {string} id @param {boolean} [range] @param {boolean} [toggle] */
function choose(id, range = false, toggle = false) {
  const order = shown.map((picture) => picture.id);
  if (range && anchor) {
    chosen.clear();
    const [from, to] = [order.indexOf(anchor), order.indexOf(id)].sort((a, b) => a - b);
    for (const each of order.slice(Math.max(0, from), to + 1)) chosen.add(each);
  } else if (toggle) {
    if (!chosen.delete(id)) chosen.add(id);
    anchor = id;
  }
  focusOn(id);
  render();
}

/** @param {string} id */
function focusOn(id) {
  focusAt = id;
  const { open, scroller, cell, across, from, length } = view();
  const row = Math.floor(shown.findIndex((picture) => picture.id === id) / across) * cell;
  const to = Math.min(row, Math.max(from, row + cell - length));
  if (to !== from) scroller.scrollTo(open ? { top: to } : { left: to });
  renderView();
  items.get(id)?.element.focus({ preventScroll: true });
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const order = shown.map((picture) => picture.id);
  const at = order.indexOf(focusAt);
  const { across } = view();
  /** @type {Record<string, number>} */
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -order.length, End: order.length };
  if (event.ctrlKey || event.altKey || at < 0) return;
  if (event.key in steps) {
    const to = order[Math.min(order.length - 1, Math.max(0, at + steps[event.key]))];
    if (event.shiftKey) choose(to, true);
    else focusOn(to);
  } else if (event.key === "Enter") openPicture(focusAt);
  else if (event.key === " ") choose(focusAt, false, true);
  else if (event.key === "Delete") void discard(chosen.size ? [...chosen] : [focusAt]);
  else if (event.key === "s") void edit(focusAt, { starred: !pictureOf(focusAt)?.starred });
  else return;
  event.preventDefault();
  event.stopPropagation();
}

/** @param {MouseEvent} event */
function onClick(event) {
  const id = /** @type {Element} */ (event.target).closest("li")?.dataset.id;
  if (!id) return;
  if (event.shiftKey) {
    anchor ||= focusAt;
    choose(id, true);
  } else if (event.ctrlKey || event.metaKey) choose(id, false, true);
  else {
    focusOn(id);
    openPicture(id);
  }
}

function startFilters() {
  $("#filter-starred").addEventListener("click", () => {
    filter.starred = !filter.starred;
    $("#filter-starred").setAttribute("aria-pressed", String(filter.starred));
    void more({ anew: true });
    render();
  });
  $("#filter-subject").addEventListener("change", () => {
    filter.subject = $("#filter-subject").value;
    void more({ anew: true });
    render();
  });
  on("subjects pictures", () => {
    const names = [...new Set([...server.subjects.map((subject) => subject.name), ...shown.flatMap((picture) => picture.subjects)])];
    const field = $("#filter-subject");
    if (field.dataset.names === names.join()) return;
    field.dataset.names = names.join();
    field.replaceChildren(h("option", { value: "" }, "every subject"), ...names.map((name) => h("option", { value: name }, name)));
    field.value = filter.subject;
  });
}

export function start() {
  const list = $("#pictures");
  list.addEventListener("keydown", onKey);
  list.addEventListener("click", onClick);
  list.addEventListener("focusin", (/** @type {FocusEvent} */ event) => (focusAt = /** @type {HTMLElement} */ (event.target).dataset.id ?? focusAt));
  startFilters();
  $("#gallery-size").addEventListener("click", () => {
    const wide = $("#gallery").classList.toggle("open");
    $("#gallery-size").setAttribute("aria-expanded", String(wide));
    $("#gallery-scroll").scrollTo(0, 0);
    renderView();
  });
  $("#compare").addEventListener("click", () => {
    const [a, b] = [...chosen];
    openPicture(a, "compare", b);
  });
  $("#delete-chosen").addEventListener("click", () => discard([...chosen]));
  $("#gallery-scroll").addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(onScroll).observe($("#gallery-scroll"));
  on("pictures", render);
  render();
}
