/** Pointer gestures on the canvas: draw, move, resize, points of polygons, paint. Escape drops the one under way. */

import { $, ask, s, toast } from "./dom.js";
import { blankMask, copyOf, fittedMask, knownMask, maskShape, stroke } from "./brush.js";
import { focusShape, pointAt, render, showShape, view } from "./canvas.js";
import { addShape, join, joinWord, nextToPlace } from "./cast.js";
import { boundsOf, boxBetween, clamp, fitted, movedBounds, resizedBounds, round, snapped } from "./shapes.js";
import { aspect, change, colourOf, draft, placeNamed, placeOf, selection, setUi, subjectNamed, ui, withPlace } from "./store.js";

/** @typedef {import("./shapes.js").Shape} Shape */
/** @typedef {{move: (event: PointerEvent) => void, end: (event: PointerEvent) => void, drop: () => void}} Gesture */

/** @type {Gesture | null} */
let gesture = null;
/** @type {[number, number][]} the points of a polygon that is being drawn */
let sketch = [];

/** Draw for the next subject; where there is none, ask who it is.
 * @param {Shape} shape
 */
async function give(shape) {
  const name = nextToPlace();
  if (name) {
    addShape(name, shape);
    return;
  }
  const answer = await ask("Who goes here?", "A subject's name, or a plain word such as ball", "", "Place");
  if (!answer) return;
  if (subjectNamed(answer)) join(answer, { shape });
  else joinWord(answer, shape);
}

/**
 * Put a changed shape into the draft, as one step that can be undone.
 * @param {string} id
 * @param {number} index
 * @param {Shape} shape
 */
export function setShape(id, index, shape) {
  change({ places: withPlace(id, (place) => ({ ...place, shapes: place.shapes.map((each, at) => (at === index ? shape : each)) })) });
}

/**
 * Take a shape away, and the place with its last one.
 * @param {string} id
 * @param {number} index
 */
export function removeShape(id, index) {
  change({ places: withPlace(id, (place) => {
    const shapes = place.shapes.filter((_, at) => at !== index);
    return shapes.length ? { ...place, shapes } : null;
  }) });
  setUi({ selected: null });
  $("#canvas").focus();
}

/** A shape in other bounds; a mask as it is shown while it moves, and as it is painted when done.
 * @param {Shape} shape
 * @param {import("./shapes.js").Box} to
 * @param {boolean} done
 */
export function inBounds(shape, to, done) {
  if (!("mask" in shape)) return fitted(shape, to);
  return done ? fittedMask(shape, to) : { ...shape, shown: to };
}

/**
 * Move or resize what is selected.
 * @param {PointerEvent} event
 * @param {string | undefined} handle
 * @returns {Gesture | null}
 */
function drag(event, handle) {
  const chosen = selection();
  if (!chosen || "rest" in chosen.shape) return null;
  const { place, shape, index } = chosen;
  const from = pointAt(event);
  const bounds = boundsOf(shape);
  let to = bounds;
  return {
    move(now) {
      const [dx, dy] = pointAt(now).map((value, at) => value - from[at]);
      to = handle ? resizedBounds(bounds, handle, dx, dy, ui.snap) : movedBounds(bounds, dx, dy, ui.snap);
      showShape(place, index, inBounds(shape, to, false));
    },
    end() {
      if (to.some((side, at) => side !== bounds[at])) setShape(place.id, index, inBounds(shape, to, true));
    },
    drop: render,
  };
}

/**
 * Move one point of a polygon, which has the keys then, too; a press without a way moves nothing.
 * @param {PointerEvent} event
 * @param {number} vertex
 * @returns {Gesture | null}
 */
function dragVertex(event, vertex) {
  const chosen = selection();
  if (!chosen || !("polygon" in chosen.shape)) return null;
  const { place, index } = chosen;
  const points = chosen.shape.polygon;
  const from = pointAt(event);
  let far = false;
  /** @type {Shape} */
  let shape = chosen.shape;
  /** @type {SVGElement} */ (event.target).focus({ preventScroll: true });
  return {
    move(now) {
      const [dx, dy] = pointAt(now).map((value, at) => value - from[at]);
      far ||= Math.hypot(dx * view.width, dy * view.height) > 3;
      if (!far) return;
      const point = /** @type {[number, number]} */ ([dx, dy].map((way, at) => round(clamp(snapped(points[vertex][at] + way, ui.snap)))));
      shape = { polygon: points.map((each, at) => (at === vertex ? point : each)) };
      showShape(place, index, shape);
    },
    end() {
      if (shape !== chosen.shape) setShape(place.id, index, shape);
    },
    drop: render,
  };
}

/**
 * Draw a box from corner to corner; a press without a way only deselects.
 * @param {PointerEvent} event
 * @returns {Gesture}
 */
function drawBox(event) {
  const from = /** @type {[number, number]} */ (pointAt(event).map((value) => snapped(value, ui.snap)));
  const name = nextToPlace();
  const rect = s("rect", { class: "sketch" });
  rect.style.setProperty("--colour", name ? colourOf(name) : "#0072b2");
  let far = false;
  /** @type {import("./shapes.js").Box} */
  let box = [0, 0, 0, 0];
  return {
    move(now) {
      const [x, y] = pointAt(now).map((value) => snapped(value, ui.snap));
      far ||= Math.hypot((x - from[0]) * view.width, (y - from[1]) * view.height) > 4;
      if (!far) return;
      box = boxBetween(from[0], from[1], x, y);
      const numbers = { x: box[0] * view.width, y: box[1] * view.height, width: (box[2] - box[0]) * view.width, height: (box[3] - box[1]) * view.height };
      for (const [key, value] of Object.entries(numbers)) rect.setAttribute(key, String(value));
      if (!rect.parentNode) $("#sketch").append(rect);
    },
    end() {
      rect.remove();
      if (far) void give({ box });
      else setUi({ selected: null });
    },
    drop: () => rect.remove(),
  };
}

/** Show the polygon that is being drawn.
 * @param {[number, number]} [pointer]
 */
function showSketch(pointer) {
  const points = pointer ? [...sketch, pointer] : sketch;
  const at = (/** @type {[number, number][]} */ list) => list.map(([x, y]) => `${x * view.width},${y * view.height}`).join(" ");
  const first = sketch[0];
  $("#sketch").replaceChildren(...(first ? [s("polyline", { class: "sketch", points: at(points) }),
    s("circle", { class: "vertex", cx: first[0] * view.width, cy: first[1] * view.height, r: 6 })] : []));
}

/** One more point; on the first one the polygon closes.
 * @param {PointerEvent} event
 */
function addPoint(event) {
  const point = /** @type {[number, number]} */ (pointAt(event).map((value) => round(clamp(snapped(value, ui.snap)))));
  const [first] = sketch;
  const closes = first && sketch.length > 2 && Math.hypot((point[0] - first[0]) * view.width, (point[1] - first[1]) * view.height) < 10;
  if (closes) closePolygon();
  else {
    sketch = [...sketch, point];
    showSketch();
  }
}

/** End the polygon that is being drawn. */
export function closePolygon() {
  const points = sketch;
  sketch = [];
  showSketch();
  if (points.length > 2) void give({ polygon: points });
  else if (points.length) toast("A polygon needs three points.");
}

/** The subject whose place the brush paints: the selected one, or the next. */
function painted() {
  const chosen = selection();
  if (chosen) return { name: chosen.place.subject, place: chosen.place };
  const name = nextToPlace();
  return name ? { name, place: placeNamed(name) } : null;
}

/**
 * Paint or erase; a place gets one mask, beside what else it has.
 * @param {PointerEvent} event
 * @param {boolean} erase
 * @returns {Gesture | null}
 */
function brush(event, erase) {
  const whom = painted();
  if (!whom) {
    toast("Choose a subject first: what you paint is its place.");
    return null;
  }
  const index = whom.place?.shapes.findIndex((shape) => "mask" in shape) ?? -1;
  const before = /** @type {any} */ (whom.place?.shapes[index]);
  if (erase && !before) return null;
  const known = before && knownMask(before.mask);
  const mask = known ? copyOf(known) : blankMask(aspect());
  const paint = $("#paint");
  const show = () => {
    [paint.width, paint.height] = [mask.width, mask.height];
    const context = paint.getContext("2d");
    context.drawImage(mask, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colourOf(whom.name);
    context.fillRect(0, 0, mask.width, mask.height);
  };
  let last = pointAt(event);
  const line = (/** @type {[number, number]} */ to) => {
    stroke(mask, last, to, { radius: ui.brush / 2, erase, soft: ui.soft });
    last = to;
    show();
  };
  paint.hidden = false;
  line(last);
  return {
    move: (now) => line(pointAt(now)),
    end() {
      paint.hidden = true;
      const shape = maskShape(mask);
      if (shape && index >= 0 && whom.place) setShape(whom.place.id, index, shape);
      else if (shape && whom.place) paintOver(whom.place, shape);
      else if (shape) addShape(whom.name, shape);
      else if (whom.place && index >= 0) removeShape(whom.place.id, index);
    },
    drop: () => (paint.hidden = true),
  };
}

/** The first paint on a place that only has its default box takes the box's stead.
 * @param {import("./shapes.js").Place} place
 * @param {Shape} shape
 */
function paintOver(place, shape) {
  change({ places: withPlace(place.id, (each) => ({ ...each, shapes: [shape] })) });
  setUi({ selected: { place: place.id, shape: 0 } });
}

/** @param {PointerEvent} event */
function begin(event) {
  const target = /** @type {SVGElement} */ (event.target);
  const { handle, vertex } = target.dataset;
  const group = /** @type {SVGGElement | null} */ (target.closest(".place"));
  const through = event.ctrlKey || event.metaKey || ui.tool === "box";
  if (ui.tool === "brush" || ui.tool === "erase") return brush(event, ui.tool === "erase");
  if (handle) return drag(event, handle);
  if (vertex !== undefined) return dragVertex(event, Number(vertex));
  if (group && !through && group.dataset.place) {
    const shape = Number(group.dataset.shape);
    const subject = placeOf(group.dataset.place)?.subject ?? null;
    setUi({ selected: { place: group.dataset.place, shape }, active: subject });
    focusShape(group.dataset.place, shape);
    return drag(event, undefined);
  }
  return drawBox(event);
}

/** Drop the gesture under way.
 * @returns {boolean} whether there was one
 */
export function dropGesture() {
  const had = gesture !== null || sketch.length > 0;
  gesture?.drop();
  gesture = null;
  sketch = [];
  showSketch();
  return had;
}

export function start() {
  const canvas = $("#canvas");
  /** @type {PointerEvent | null} */
  let latest = null;
  canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (event.button !== 0 || gesture) return;
    event.preventDefault();
    if (!canvas.contains(document.activeElement)) canvas.focus({ preventScroll: true });
    if (ui.tool === "polygon" && !/** @type {any} */ (event.target).dataset.handle && /** @type {any} */ (event.target).dataset.vertex === undefined) {
      addPoint(event);
      return;
    }
    gesture = begin(event);
    if (gesture) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (sketch.length && !gesture) showSketch(pointAt(event));
    if (!gesture) return;
    const brushes = ui.tool === "brush" || ui.tool === "erase";
    if (brushes) for (const each of event.getCoalescedEvents?.() ?? []) gesture.move(each);
    if (!latest) requestAnimationFrame(() => (latest && gesture?.move(latest), (latest = null)));
    latest = event;
  });
  const finish = (/** @type {PointerEvent} */ event) => {
    if (!gesture) return;
    const done = gesture;
    latest = null;
    done.move(event);
    gesture = null;
    done.end(event);
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", dropGesture);
  canvas.addEventListener("dblclick", (/** @type {MouseEvent} */ event) => {
    const { vertex } = /** @type {SVGElement} */ (event.target).dataset;
    if (sketch.length > 2) closePolygon();
    else if (vertex !== undefined) removeVertex(Number(vertex));
  });
}

/** @param {number} vertex */
export function removeVertex(vertex) {
  const chosen = selection();
  if (!chosen || !("polygon" in chosen.shape)) return;
  if (chosen.shape.polygon.length <= 3) toast("A polygon needs three points.");
  else setShape(chosen.place.id, chosen.index, { polygon: chosen.shape.polygon.filter((_, at) => at !== vertex) });
}
