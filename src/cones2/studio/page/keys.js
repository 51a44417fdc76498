/** The keyboard. No single letter acts while a field has the focus. */

import { $, h, isField, openDialog } from "./dom.js";
import { zoomBy } from "./canvas.js";
import { join } from "./cast.js";
import { closePolygon, dropGesture, inBounds, removeShape, removeVertex, setShape } from "./gestures.js";
import { cancelMine, make } from "./jobs.js";
import { selectNext } from "./places.js";
import { boundsOf, clamp, movedBounds, resizedBounds, round } from "./shapes.js";
import { redo, selection, setUi, ui, undo } from "./store.js";

/** @type {Record<string, string>} */
const TOOLS = { v: "move", u: "box", p: "polygon", b: "brush", e: "erase" };

const HELP = [
  ["Make", [["Ctrl Enter", "make"], ["Ctrl Shift Enter", "cancel mine and make"], ["Shift X", "cancel"]]],
  ["Tools", [["V", "move, resize, draw on empty ground"], ["U", "box, also over others (Ctrl drag)"], ["P", "polygon; Enter closes it"], ["B  E", "brush, eraser"], ["[  ]", "smaller, larger brush"], ["G", "snap to the dots"]]],
  ["Places", [["Alt [  Alt ]", "the one before, the next"], ["Arrows", "move by 1 %, with Shift by 5 %"], ["Alt arrows", "resize"], ["Delete", "delete"], ["Esc", "drop the gesture"], ["Ctrl Z", "undo"], ["Ctrl Shift Z", "redo"], ["Ctrl 0", "fit"]]],
  ["A picture", [["A", "re-open all of it"], ["R", "remix: a new seed"], ["S", "star"], ["I", "places over it"], ["← →", "the one before, the next"], ["Delete", "delete"]]],
];

export function showHelp() {
  const dialog = $("#help");
  $("#help-keys").replaceChildren(...HELP.map(([title, rows]) => h("section", {}, h("h3", {}, title), h("dl", {},
    /** @type {string[][]} */ (rows).flatMap(([key, text]) => [h("dt", {}, ...key.split(" ").filter(Boolean).map((each) => h("kbd", {}, each))), h("dd", {}, text)])))));
  openDialog(dialog);
}

/** @param {string} tool */
export function setTool(tool) {
  dropGesture();
  setUi({ tool });
}

/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * Move or resize what is selected, or a polygon's point that has the focus.
 * @param {KeyboardEvent} event
 */
function arrow(event) {
  const chosen = selection();
  if (!chosen || "rest" in chosen.shape) return false;
  const [dx, dy] = ARROWS[event.key].map((way) => way * (event.shiftKey ? 0.05 : 0.01));
  const { place, index, shape } = chosen;
  const vertex = document.activeElement?.getAttribute("data-vertex");
  if (vertex && "polygon" in shape) {
    setShape(place.id, index, { polygon: shape.polygon.map(([x, y], at) => (at === Number(vertex) ? [round(clamp(x + dx)), round(clamp(y + dy))] : [x, y])) });
    return true;
  }
  const bounds = boundsOf(shape);
  const to = event.altKey ? resizedBounds(bounds, "se", dx, dy) : movedBounds(bounds, dx, dy);
  setShape(place.id, index, inBounds(shape, to, true));
  return true;
}

/** @param {KeyboardEvent} event @returns {boolean} whether the key meant something */
function onCanvas(event) {
  if (event.key in ARROWS && !event.ctrlKey) return arrow(event);
  const chosen = selection();
  if ((event.key === "Delete" || event.key === "Backspace") && chosen) {
    const vertex = document.activeElement?.getAttribute("data-vertex");
    if (vertex) removeVertex(Number(vertex));
    else removeShape(chosen.place.id, chosen.index);
    return true;
  }
  if (event.key === "Enter" && ui.tool === "polygon") {
    closePolygon();
    return true;
  }
  if (event.key === "Enter" && ui.active) {
    join(ui.active, { mention: false });
    return true;
  }
  return false;
}

/** @param {KeyboardEvent} event */
function withControl(event) {
  const key = event.key.toLowerCase();
  if (key === "enter") void make({ cancelFirst: event.shiftKey });
  else if (key === "0") zoomBy(0);
  else if (isField(event.target)) return false; // a field has its own undo
  else if (key === "z") event.shiftKey ? redo() : undo();
  else if (key === "y") redo();
  else return false;
  return true;
}

/** @param {KeyboardEvent} event */
function plain(event) {
  const key = event.key.toLowerCase();
  if (event.altKey) {
    if (event.code === "BracketLeft") selectNext(-1);
    else if (event.code === "BracketRight") selectNext(1);
    else return false;
    return true;
  }
  if (isField(event.target)) return false;
  if (event.shiftKey && key === "x") void cancelMine();
  else if (event.key === "?") showHelp();
  else if (event.shiftKey) return false;
  else if (key in TOOLS) setTool(TOOLS[key]);
  else if (key === "g") setUi({ snap: !ui.snap });
  else if (key === "[") setUi({ brush: Math.max(0.01, ui.brush / 1.3) });
  else if (key === "]") setUi({ brush: Math.min(0.5, ui.brush * 1.3) });
  else return false;
  return true;
}

export function start() {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const inCanvas = event.target instanceof Element && Boolean(event.target.closest("#canvas"));
    let done = false;
    if (event.key === "Escape") done = dropGesture();
    else if (inCanvas && !event.ctrlKey && !event.metaKey) done = onCanvas(event);
    if (!done) done = event.ctrlKey || event.metaKey ? withControl(event) : plain(event);
    if (done) event.preventDefault();
  });
  $("#help-open").addEventListener("click", showHelp);
}
