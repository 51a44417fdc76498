/** The list of places, the foremost first: rows with number fields, so that nothing needs a mouse. */

import { $, announce, ask, h, iconButton, put, toast } from "./dom.js";
import { isMissing, join, leave, renameInDraft } from "./cast.js";
import { inBounds, removeShape, setShape } from "./gestures.js";
import { nameFrom } from "./layouts.js";
import { boundsOf, boxBetween, kindOf, percent, round } from "./shapes.js";
import { change, draft, memberNamed, on, placeNamed, setUi, subjectNamed, ui, withPlace } from "./store.js";
import { face } from "./subjects.js";

/** @typedef {import("./shapes.js").Place} Place */
/** @typedef {import("./shapes.js").Shape} Shape */

/** Give every place a depth of its own, in the order of a list.
 * @param {Place[]} list
 */
const layered = (list) => list.map((place, at) => ({ ...place, z: list.length - 1 - at }));

/** Move a row; from then on the one in front hides the others.
 * @param {string} id
 * @param {number} to
 */
function moveRow(id, to) {
  const list = [...draft.places];
  const [moved] = list.splice(list.findIndex((place) => place.id === id), 1);
  list.splice(to, 0, moved);
  change({ places: layered(list) });
  announce(`${moved.subject} is now ${to === 0 ? "in front" : `number ${to + 1} from the front`}`);
}

/** Select the next place, or the one before.
 * @param {number} step
 */
export function selectNext(step) {
  const all = draft.places.flatMap((place) => place.shapes.map((_, shape) => ({ place: place.id, shape })));
  if (!all.length) return;
  const at = all.findIndex((each) => each.place === ui.selected?.place && each.shape === ui.selected.shape);
  const next = all[(at + step + all.length) % all.length];
  setUi({ selected: next, active: draft.places.find((place) => place.id === next.place)?.subject ?? null });
}

/**
 * @param {string} label
 * @param {number} value
 * @param {(value: number) => void} set
 * @param {Record<string, any>} limits
 */
function number(label, value, set, limits) {
  const field = h("input", { type: "number", value, ...limits, onchange: () => {
    const read = Number(field.value);
    if (field.value !== "" && Number.isFinite(read)) set(read);
    else field.value = String(value);
  } });
  return h("label", { class: "mini" }, h("span", {}, label), field);
}

/**
 * The four numbers of a shape's bounds, in percent.
 * @param {Place} place
 * @param {Shape} shape
 * @param {number} index
 */
function fields(place, shape, index) {
  const [x0, y0, x1, y1] = boundsOf(shape);
  const set = (/** @type {number} */ side) => (/** @type {number} */ value) => {
    const sides = [x0, y0, x1 - x0, y1 - y0];
    sides[side] = value / 100;
    const [left, top, wide, high] = sides.map((side) => Math.min(1, Math.max(0, side)));
    const box = boxBetween(Math.min(left, 0.98), Math.min(top, 0.98), Math.min(1, left + wide), Math.min(1, top + high));
    setShape(place.id, index, inBounds(shape, box, true));
  };
  const limits = { min: 0, max: 100, step: 0.5 };
  return h("div", { class: "numbers" }, ["x", "y", "w", "h"].map((side, at) =>
    number(side, percent([x0, y0, x1 - x0, y1 - y0][at]), set(at), { ...limits, "aria-label": `${place.subject}: ${["left", "top", "width", "height"][at]} in percent` })));
}

/** @param {Place} place @param {Shape} shape @param {number} index */
function points(place, shape, index) {
  if (!("polygon" in shape)) return null;
  const text = shape.polygon.map(([x, y]) => `${percent(x)} ${percent(y)}`).join(", ");
  const field = h("input", { value: text, "aria-label": `points of ${place.subject}, x y in percent`, spellcheck: "false", onchange: () => {
    const read = field.value.split(",").map((/** @type {string} */ pair) => pair.trim().split(/\s+/).map((part) => round(Number(part) / 100)));
    const sound = read.length > 2 && read.every((/** @type {number[]} */ pair) => pair.length === 2 && pair.every((value) => value >= 0 && value <= 1));
    if (sound) setShape(place.id, index, { polygon: read });
    else field.value = text;
  } });
  return field;
}

/** @param {Place} place */
function details(place) {
  const set = (/** @type {Partial<Place>} */ changes) => change({ places: withPlace(place.id, (each) => ({ ...each, ...changes })).sort((a, b) => b.z - a.z) });
  const isRest = place.shapes.some((shape) => "rest" in shape);
  return h("details", { class: "row-more" }, h("summary", {}, "more"),
    h("div", { class: "numbers three" },
      number("pull", place.weight, (weight) => set({ weight: Math.min(100, Math.max(0, weight)) }), { min: 0, max: 100, step: 0.1, "aria-label": `${place.subject}: how strongly its place pulls` }),
      number("soft edge", percent(place.feather), (value) => set({ feather: Math.min(0.5, Math.max(0, value / 100)) }), { min: 0, max: 50, step: 1, "aria-label": `${place.subject}: soft edge in percent` }),
      number("depth", place.z, (value) => set({ z: Math.min(100, Math.max(-100, Math.round(value))) }), { min: -100, max: 100, step: 1, "aria-label": `${place.subject}: depth, greater is nearer` })),
    h("label", { class: "check" }, h("input", { type: "checkbox", checked: isRest, onchange: () =>
      set({ shapes: isRest ? [{ box: [0.3, 0.3, 0.7, 0.9] }] : [{ rest: true }], z: isRest ? place.z : Math.min(...draft.places.map((each) => each.z)) }) }),
    "everything that the others leave (a scene)"),
    h("button", { type: "button", class: "small-button", onclick: () => change({ places: withPlace(place.id, () => null) }) }, "Delete this place"));
}

/** @param {import("./store.js").Member} member */
async function renameWord(member) {
  const name = nameFrom((await ask(`Rename ${member.name}`, "Name", member.name)) ?? member.name);
  if (name === member.name) return;
  if (memberNamed(name)) toast(`${name} is taken.`, { bad: true });
  else renameInDraft(member.name, name);
}

/** The head of a row: who it is, and out with it.
 * @param {string} name
 * @param {() => void} select
 * @param {...any} buttons
 */
function head(name, select, ...buttons) {
  const member = memberNamed(name);
  const missing = member && isMissing(member);
  const word = missing ? "its file is missing" : member?.source === "word" ? `plain word ${member.class_word}` : member?.class_word;
  const thumb = member?.source === "word" ? undefined : subjectNamed(name)?.thumb;
  return h("div", { class: `row-head${missing ? " missing" : ""}` },
    h("button", { type: "button", class: "name", onclick: select }, face(name, name, thumb),
      h("span", { class: "chip-text" }, h("b", {}, name), h("span", { class: "hint" }, word))),
    missing ? h("button", { type: "button", class: "link", onclick: () => $("#import-file").click() }, "import") : null,
    member?.source === "word" ? iconButton("pencil", `Rename ${name}`, () => renameWord(member)) : null,
    ...buttons, iconButton("close", `Take ${name} out of the picture`, () => leave(name)));
}

/** @param {Place} place @param {number} at */
function row(place, at) {
  const select = (/** @type {number} */ shape) => setUi({ selected: { place: place.id, shape }, active: place.subject });
  const many = place.shapes.length > 1;
  const lines = place.shapes.map((shape, index) => h("div", { class: "shape-line", onfocusin: () => select(index) },
    "rest" in shape ? h("span", { class: "hint" }, "everything the others leave") : fields(place, shape, index), points(place, shape, index),
    many ? iconButton("close", `Delete ${kindOf(shape)} ${index + 1} of ${place.subject}`, () => removeShape(place.id, index)) : null));
  return h("li", { class: "place-row", draggable: "true", "data-id": place.id, "data-subject": place.subject,
    ondragstart: (/** @type {DragEvent} */ event) => {
      if (/** @type {Element} */ (event.target).closest("input")) event.preventDefault();
      event.dataTransfer?.setData("text/x-place", place.id);
    },
    ondragover: (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("text/x-place") && event.preventDefault(),
    ondrop: (/** @type {DragEvent} */ event) => {
      const id = event.dataTransfer?.getData("text/x-place");
      if (id) (event.preventDefault(), event.stopPropagation(), moveRow(id, at));
    } },
  head(place.subject, () => select(0),
    iconButton("up", `Bring ${place.subject} to the front by one`, () => moveRow(place.id, at - 1), { disabled: at === 0 }),
    iconButton("down", `Send ${place.subject} back by one`, () => moveRow(place.id, at + 1), { disabled: at === draft.places.length - 1 })),
  ...lines, details(place));
}

/** A subject of the picture that has no place.
 * @param {import("./store.js").Member} member
 */
const bareRow = (member) => h("li", { class: "place-row bare", "data-id": member.name, "data-subject": member.name }, head(member.name, () => setUi({ active: member.name, selected: null }),
  h("button", { type: "button", class: "link", onclick: () => join(member.name, { mention: false }) }, "place it")));

/** Show what is chosen; the fields stay, since one of them may be in use. */
function mark() {
  for (const item of $("#places").children) {
    item.classList.toggle("selected", item.dataset.id === ui.selected?.place);
    $(".name", item).setAttribute("aria-pressed", String(item.dataset.subject === ui.active));
  }
}

/** Keep open what was open, and the focus in the same field of the same row. */
function render() {
  const list = $("#places");
  const open = new Set([...list.querySelectorAll("details[open]")].map((each) => each.closest("li").dataset.id));
  const focused = list.contains(document.activeElement) && /** @type {HTMLElement} */ (document.activeElement);
  const home = focused && focused.closest("li")?.dataset.id;
  const label = focused && (focused.getAttribute("aria-label") ?? focused.className);
  put(list, draft.places.map(row), draft.members.filter((member) => !placeNamed(member.name)).map(bareRow));
  for (const item of list.children) {
    if (open.has(item.dataset.id)) $("details", item).open = true;
    if (item.dataset.id === home) [...item.querySelectorAll("input, button")].find((each) => (each.getAttribute("aria-label") ?? each.className) === label)?.focus();
  }
  mark();
  $("#places-empty").hidden = list.children.length > 0;
  $("#overlap").hidden = draft.places.length < 2;
  $("#overlap-share").checked = draft.places.length > 1 && new Set(draft.places.map((place) => place.z)).size === 1;
}

export function start() {
  let shown = "";
  on("draft ui subjects", () => {
    const now = JSON.stringify([draft.places, draft.members.map(({ strength, negative, ...member }) => [member, isMissing({ ...member, strength, negative })])]);
    if (now === shown) {
      mark();
      return;
    }
    shown = now;
    render();
  });
  $("#overlap-share").addEventListener("change", (/** @type {Event} */ event) => {
    const share = /** @type {HTMLInputElement} */ (event.target).checked;
    change({ places: share ? draft.places.map((place) => ({ ...place, z: 0 })) : layered(draft.places) });
  });
}
