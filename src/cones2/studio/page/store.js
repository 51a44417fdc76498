/**
 * What the page knows. The draft is the person's: it lives in this browser and has undo. The rest is the server's.
 *
 * @typedef {import("./shapes.js").Place} Place
 * @typedef {{name: string, source: "library" | "example" | "word", class_word: string, sha256: string | null,
 *   strength: number, negative: string, colour: number}} Member a subject of the draft
 * @typedef {{prompt: string, negative_prompt: string, members: Member[], places: Place[], width: number, height: number,
 *   seed: number, count: number, advance: boolean, steps: number, guidance_scale: number, layout_scale: number,
 *   preset: string, scheduler: string | null, measure_attention: boolean}} Draft
 */

import { COLOURS } from "./shapes.js";

const KEY = "cones2.draft";
const UNDOABLE = /** @type {const} */ (["prompt", "members", "places", "width", "height"]);
const MOST_STEPS_BACK = 200;

/** @type {Draft} */
const EMPTY = {
  prompt: "", negative_prompt: "", members: [], places: [], width: 0, height: 0, seed: 0, count: 1, advance: true,
  steps: 0, guidance_scale: 0, layout_scale: 1, preset: "paper", scheduler: null, measure_attention: true,
};

/** What the server told: replaced as a whole, never kept in the browser. */
export const server = {
  /** @type {any} */ info: null,
  /** @type {any[]} */ subjects: [],
  /** @type {Map<string, any>} */ jobs: new Map(),
  connected: true,
  worker: "starting",
};

/** What is chosen on the page right now. */
export const ui = {
  /** @type {string | null} the subject that the next drawn place belongs to */ active: null,
  /** @type {{place: string, shape: number} | null} */ selected: null,
  tool: "move", snap: false, brush: 0.06, soft: false,
};

/** @type {Draft} */
export let draft = load();
/** @type {Record<string, [any, any]>[]} */
let past = [];
/** @type {Record<string, [any, any]>[]} */
let future = [];

/** The picture's width by its height; a square, before the model has said what size it likes. */
export const aspect = () => (draft.width || 1) / (draft.height || 1);

/** @returns {Draft} */
function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    const sound = Array.isArray(kept.places ?? []) && Array.isArray(kept.members ?? []);
    return sound ? { ...EMPTY, ...kept } : { ...EMPTY };
  } catch {
    return { ...EMPTY };
  }
}

let saving = 0;
function save() {
  clearTimeout(saving);
  saving = setTimeout(saveNow, 200);
}

/** Keep the draft now; a page that goes away has no later. */
export function saveNow() {
  try {
    localStorage.setItem(KEY, JSON.stringify(draft));
  } catch {
    // Private windows may have no room: the draft then lives as long as the tab.
  }
}
addEventListener("pagehide", saveNow);

/** @type {Map<string, Set<() => void>>} */
const listeners = new Map();

/**
 * Call something whenever one of the topics changes: draft, ui, subjects, jobs, info, connection.
 * @param {string} topics separated by spaces
 * @param {() => void} run
 */
export function on(topics, run) {
  for (const topic of topics.split(" ")) {
    if (!listeners.has(topic)) listeners.set(topic, new Set());
    listeners.get(topic)?.add(run);
  }
}

/** @type {Set<string>} */
const told = new Set();
/**
 * Say that something changed; who listens is called once, before the next frame.
 * @param {...string} topics
 */
export function tell(...topics) {
  if (!told.size) queueMicrotask(flush);
  for (const topic of topics) told.add(topic);
}

function flush() {
  const runs = new Set([...told].flatMap((topic) => [...(listeners.get(topic) ?? [])]));
  told.clear();
  for (const run of runs) run();
}

/**
 * Change the draft; what can be undone becomes one step.
 * @param {Partial<Draft>} changes
 * @param {{undoable?: boolean}} [how]
 */
export function change(changes, { undoable = true } = {}) {
  /** @type {Record<string, [any, any]>} */
  const step = {};
  for (const key of UNDOABLE) {
    if (key in changes && JSON.stringify(changes[key]) !== JSON.stringify(draft[key])) step[key] = [draft[key], changes[key]];
  }
  if (undoable && Object.keys(step).length) {
    past = [...past.slice(1 - MOST_STEPS_BACK), step];
    future = [];
  }
  draft = { ...draft, ...changes };
  save();
  tell("draft");
}

/** @param {1 | 0} side of a step: what was, or what became */
function apply(/** @type {Record<string, [any, any]>} */ step, side) {
  const typedSince = step.prompt && step.prompt[1 - side] !== draft.prompt; // undo takes back gestures, never what was typed after
  const keys = Object.keys(step).filter((key) => !(key === "prompt" && typedSince));
  draft = { ...draft, ...Object.fromEntries(keys.map((key) => [key, step[key][side]])) };
  if (ui.selected && !placeOf(ui.selected.place)) ui.selected = null;
  save();
  tell("draft", "ui");
}

export function undo() {
  const step = past.pop();
  if (!step) return false;
  future.push(step);
  apply(step, 0);
  return true;
}

export function redo() {
  const step = future.pop();
  if (!step) return false;
  past.push(step);
  apply(step, 1);
  return true;
}

export const canUndo = () => past.length > 0;
export const canRedo = () => future.length > 0;

/** @param {string} id */
export const placeOf = (id) => draft.places.find((place) => place.id === id);
/** @param {string} name */
export const placeNamed = (name) => draft.places.find((place) => place.subject === name);
/** @param {string} name */
export const memberNamed = (name) => draft.members.find((member) => member.name === name);
/** @param {string} name */
export const subjectNamed = (name) => server.subjects.find((subject) => subject.name === name);

/** A subject's colour, which it keeps as long as it is in the draft.
 * @param {string} name
 */
export const colourOf = (name) => COLOURS[(memberNamed(name)?.colour ?? 0) % COLOURS.length];

/**
 * Replace one place, or leave it out.
 * @param {string} id
 * @param {((place: Place) => Place | null)} run
 * @returns {Place[]}
 */
export const withPlace = (id, run) =>
  draft.places.flatMap((place) => (place.id === id ? run(place) ?? [] : [place]));

/** @param {Partial<typeof ui>} changes */
export function setUi(changes) {
  Object.assign(ui, changes);
  tell("ui");
}

/** The selected place and shape, where there is one. */
export function selection() {
  const place = ui.selected && placeOf(ui.selected.place);
  const shape = place?.shapes[ui.selected?.shape ?? 0];
  return place && shape ? { place, shape, index: ui.selected?.shape ?? 0 } : null;
}
