/** The canvas: places as SVG groups that can be focused, over the picture that forms. Gestures are in gestures.js. */

import { $, s } from "./dom.js";
import { knownMask, maskCanvas, tinted } from "./brush.js";
import { backToFront, boundsOf, described, GRID, HANDLES, inkOn } from "./shapes.js";
import { aspect, colourOf, draft, on, selection, setUi, ui } from "./store.js";

/** @typedef {import("./shapes.js").Place} Place */
/** @typedef {import("./shapes.js").Shape} Shape */

const TAG = 20;
/** Where the canvas is on the page, in CSS pixels. */
export const view = { width: 1, height: 1, zoom: 1 };
/** @type {Map<string, SVGGElement>} */
const groups = new Map();
const measure = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"));
measure.font = "600 12px system-ui, sans-serif";

/** How wide a name is at 12 pixels, bold.
 * @param {string} text
 */
export const textWidth = (text) => measure.measureText(text).width;

/**
 * @param {string} place
 * @param {number} shape
 */
const keyOf = (place, shape) => `${place}/${shape}`;

/** The pointer's place in the picture, in fractions.
 * @param {{clientX: number, clientY: number}} event
 * @returns {[number, number]}
 */
export function pointAt(event) {
  const box = $("#canvas").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

/** Make the sheet as large as the stage allows, times the zoom. */
export function fit() {
  const stage = $("#stage");
  const room = [Math.max(120, stage.clientWidth - 24), Math.max(120, stage.clientHeight - 24)];
  const narrow = matchMedia("(max-width: 700px)").matches;
  const width = narrow ? Math.min(room[0], innerHeight * 0.62 * aspect()) : Math.min(room[0], room[1] * aspect());
  view.width = Math.round(width * view.zoom);
  view.height = Math.round((width / aspect()) * view.zoom);
  const sheet = $("#sheet");
  sheet.style.width = `${view.width}px`;
  sheet.style.height = `${view.height}px`;
  const canvas = $("#canvas");
  canvas.setAttribute("viewBox", `0 0 ${view.width} ${view.height}`);
  $("#zoom").textContent = `${Math.round(view.zoom * 100)} %`;
  render();
}

/** @param {number} factor */
export function zoomBy(factor) {
  const steps = [0.5, 0.75, 1, 1.5, 2, 3, 4];
  const now = steps.reduce((best, step) => (Math.abs(step - view.zoom) < Math.abs(best - view.zoom) ? step : best));
  view.zoom = factor === 0 ? 1 : steps[Math.min(steps.length - 1, Math.max(0, steps.indexOf(now) + Math.sign(factor)))];
  fit();
}

/** Draw everything anew; elements stay where they can, so that focus does too. */
export function render() {
  const layer = $("#places-layer");
  const focused = document.activeElement?.getAttribute("data-key");
  const wanted = backToFront(draft.places).flatMap((place) => place.shapes.map((shape, index) => ({ place, shape, index })));
  const keys = wanted.map(({ place, index }) => keyOf(place.id, index));
  for (const [key, group] of groups) {
    if (keys.includes(key)) continue;
    group.remove();
    groups.delete(key);
  }
  wanted.forEach(({ place, shape, index }, at) => {
    const group = groupFor(place, index);
    paint(group, place, shape);
    if (layer.children[at] !== group) layer.insertBefore(group, layer.children[at] ?? null);
  });
  $("#dots").toggleAttribute("hidden", !ui.snap);
  renderHandles();
  if (focused && document.activeElement?.getAttribute("data-key") !== focused) groups.get(focused)?.focus();
  $("#canvas-empty").hidden = draft.places.length > 0 || Boolean($("#backdrop").getAttribute("src"));
}

/**
 * @param {Place} place
 * @param {number} index
 */
function groupFor(place, index) {
  const key = keyOf(place.id, index);
  const known = groups.get(key);
  if (known) return known;
  const group = s("g", { class: "place", role: "group", tabindex: "0", "aria-roledescription": "place", "data-key": key,
    "data-place": place.id, "data-shape": index,
    onfocus: () => {
      const { selected } = ui;
      if (selected?.place !== place.id || selected.shape !== index) setUi({ selected: { place: place.id, shape: index } });
    } }, s("g", { class: "body" }), s("g", { class: "tag" }, s("rect", { rx: 5, height: TAG }), s("text", { y: 14, x: 7 })));
  groups.set(key, group);
  return group;
}

/**
 * Draw one shape as it is now; gestures call this on every frame for what they move.
 * @param {SVGGElement} group
 * @param {Place} place
 * @param {Shape} shape
 */
function paint(group, place, shape) {
  const colour = colourOf(place.subject);
  const { width, height } = view;
  const [x0, y0, x1, y1] = boundsOf(shape);
  const frame = { x: x0 * width, y: y0 * height, width: (x1 - x0) * width, height: (y1 - y0) * height };
  const body = /** @type {SVGGElement} */ (group.firstElementChild);
  const kind = "polygon" in shape ? "polygon" : "mask" in shape ? "image" : "rect";
  let element = body.firstElementChild;
  if (element?.localName !== kind) {
    element = s(kind, { class: "outline" });
    body.replaceChildren(/** @type {Element} */ (element));
  }
  if ("polygon" in shape) element?.setAttribute("points", shape.polygon.map(([x, y]) => `${x * width},${y * height}`).join(" "));
  else if ("mask" in shape) paintMask(/** @type {Element} */ (element), shape, frame, colour);
  else for (const [name, value] of Object.entries(frame)) element?.setAttribute(name, String(value));
  group.classList.toggle("rest", "rest" in shape);
  group.style.setProperty("--colour", colour);
  group.classList.toggle("selected", ui.selected?.place === place.id && String(ui.selected.shape) === group.dataset.shape);
  group.setAttribute("aria-label", described(place, shape));
  paintTag(/** @type {SVGGElement} */ (group.lastElementChild), place, frame, colour);
}

/**
 * @param {SVGGElement} tag
 * @param {Place} place
 * @param {{x: number, y: number}} frame
 * @param {string} colour
 */
function paintTag(tag, place, frame, colour) {
  const text = /** @type {SVGTextElement} */ (tag.lastElementChild);
  if (text.textContent !== place.subject) {
    text.textContent = place.subject;
    tag.dataset.width = String(Math.min(textWidth(place.subject) + 14, 200));
  }
  const wide = Number(tag.dataset.width);
  tag.firstElementChild?.setAttribute("width", String(wide));
  tag.setAttribute("transform", `translate(${Math.max(2, Math.min(frame.x + 4, view.width - wide - 2))} ${Math.min(frame.y + 4, view.height - TAG - 2)})`);
  text.setAttribute("fill", inkOn(colour));
}

/**
 * @param {Element} image
 * @param {{mask: string, bounds: import("./shapes.js").Box, shown?: import("./shapes.js").Box}} shape
 * @param {{x: number, y: number, width: number, height: number}} frame
 * @param {string} colour
 */
function paintMask(image, shape, frame, colour) {
  const whole = shape.shown ? stretched(shape.bounds, shape.shown) : [0, 0, 1, 1];
  image.setAttribute("preserveAspectRatio", "none");
  image.setAttribute("x", String(whole[0] * view.width));
  image.setAttribute("y", String(whole[1] * view.height));
  image.setAttribute("width", String(whole[2] * view.width));
  image.setAttribute("height", String(whole[3] * view.height));
  const known = knownMask(shape.mask);
  if (!known) {
    void maskCanvas(shape.mask).then(render, () => {});
    return;
  }
  const look = `${colour}${shape.mask.length}${shape.mask.slice(-24)}${shape.mask.slice(200, 224)}`;
  if (image.getAttribute("data-look") === look) return;
  image.setAttribute("data-look", look);
  image.setAttribute("href", tinted(known, colour));
}

/** Where the whole mask must be shown so that its bounds come to lie on others: x, y, width, height.
 * @param {import("./shapes.js").Box} from
 * @param {import("./shapes.js").Box} to
 */
function stretched(from, to) {
  const across = (to[2] - to[0]) / (from[2] - from[0]);
  const down = (to[3] - to[1]) / (from[3] - from[1]);
  return [to[0] - from[0] * across, to[1] - from[1] * down, across, down];
}

/**
 * Show a shape as a gesture has it, without changing the draft.
 * @param {Place} place
 * @param {number} index
 * @param {Shape} shape
 */
export function showShape(place, index, shape) {
  const group = groups.get(keyOf(place.id, index));
  if (group) paint(group, place, shape);
  placeHandles(shape);
}

/** @param {string} place @param {number} shape */
export const focusShape = (place, shape) => groups.get(keyOf(place, shape))?.focus();

/** The handles of what is selected: eight of its bounds, and a polygon's points. */
export function renderHandles() {
  const layer = $("#handles");
  const chosen = selection();
  if (!chosen || "rest" in chosen.shape || ui.tool === "brush" || ui.tool === "erase") {
    layer.replaceChildren();
    return;
  }
  const points = "polygon" in chosen.shape ? chosen.shape.polygon : [];
  const want = `${chosen.place.id}/${chosen.index}/${points.length}`;
  if (layer.dataset.for !== want || !layer.children.length) {
    layer.dataset.for = want;
    layer.style.setProperty("--colour", colourOf(chosen.place.subject));
    layer.replaceChildren(...HANDLES.map((handle) => s("rect", { class: `handle ${handle}`, "data-handle": handle, width: 11, height: 11, rx: 3 })),
      ...points.map((_, at) => s("circle", { class: "vertex", "data-vertex": at, r: 6, tabindex: "0", role: "img",
        "aria-label": `point ${at + 1} of ${points.length} of ${chosen.place.subject}` })));
  }
  placeHandles(chosen.shape);
}

/** @param {Shape} shape */
function placeHandles(shape) {
  const layer = $("#handles");
  const [x0, y0, x1, y1] = "mask" in shape && /** @type {any} */ (shape).shown || boundsOf(shape);
  for (const element of layer.children) {
    const { handle, vertex } = element.dataset;
    if (handle) {
      const x = handle.includes("w") ? x0 : handle.includes("e") ? x1 : (x0 + x1) / 2;
      const y = handle.includes("n") ? y0 : handle.includes("s") ? y1 : (y0 + y1) / 2;
      element.setAttribute("x", String(x * view.width - 5.5));
      element.setAttribute("y", String(y * view.height - 5.5));
    } else if ("polygon" in shape && shape.polygon[vertex]) {
      element.setAttribute("cx", String(shape.polygon[vertex][0] * view.width));
      element.setAttribute("cy", String(shape.polygon[vertex][1] * view.height));
    }
  }
}

/**
 * Show a picture under the places: one that forms, or one that is done.
 * @param {string | null} url
 * @param {string} [text] what it is
 */
export function showBackdrop(url, text = "") {
  const image = $("#backdrop");
  if (url) image.src = url;
  else image.removeAttribute("src");
  image.alt = text;
  image.hidden = !url;
  $("#sheet").classList.toggle("pictured", Boolean(url));
  $("#backdrop-part").hidden = !url;
  $("#canvas-empty").hidden = draft.places.length > 0 || Boolean(url);
}

/** Build the parts of the canvas, and keep them as the draft has them. */
export function start() {
  const dots = s("pattern", { id: "grid", width: `${GRID * 100}%`, height: `${GRID * 100}%` }, s("circle", { cx: 1, cy: 1, r: 1 }));
  $("#canvas").append(s("defs", {}, dots), s("rect", { id: "dots", width: "100%", height: "100%", fill: "url(#grid)", hidden: true }),
    s("g", { id: "places-layer" }), s("g", { id: "handles" }), s("g", { id: "sketch" }));
  new ResizeObserver(fit).observe($("#stage"));
  let shown = "";
  on("draft ui", () => {
    const size = `${draft.width}x${draft.height}`;
    if (size !== shown) {
      shown = size;
      fit();
    } else render();
  });
  $("#stage").addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomBy(-event.deltaY);
  }, { passive: false });
  $("#zoom-in").addEventListener("click", () => zoomBy(1));
  $("#zoom-out").addEventListener("click", () => zoomBy(-1));
  $("#zoom").addEventListener("click", () => zoomBy(0));
  $("#backdrop-clear").addEventListener("click", () => showBackdrop(null));
}

