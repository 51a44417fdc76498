/** Who plays in the draft: subjects join by a chip, get a place and a mention, are renamed, and leave. */

import { announce, toast } from "./dom.js";
import { nameFrom, newId } from "./layouts.js";
import { boxInGap, rowOfBoxes } from "./shapes.js";
import { change, draft, memberNamed, placeNamed, server, setUi, subjectNamed, ui } from "./store.js";

/** @typedef {import("./store.js").Member} Member */
/** @typedef {import("./shapes.js").Shape} Shape */

/** The names in a prompt's braces, each once.
 * @param {string} prompt
 */
export const mentioned = (prompt) => [...new Set([...prompt.matchAll(/\{([^{}]*)\}/g)].map((match) => match[1]))];

/** Greater than any other: in front.
 * @returns {number}
 */
const frontmost = () => Math.min(100, Math.max(-1, ...draft.places.map((place) => place.z)) + 1);

/**
 * A member for the draft, of the library, the examples, or a plain word.
 * @param {string} name
 * @param {string} [word] makes it a plain word
 * @returns {Member}
 */
export function memberFor(name, word) {
  const subject = word === undefined ? subjectNamed(name) : undefined;
  return { name, source: subject?.source ?? "word", class_word: subject?.class_word ?? word ?? name,
    sha256: subject?.sha256 ?? null, strength: 1, negative: "", colour: freeColour() };
}

/** The first colour that no one has; they repeat only when all are taken. */
function freeColour() {
  const taken = draft.members.map((member) => member.colour);
  const free = taken.findIndex((_, turn) => !taken.includes(turn));
  return free < 0 ? taken.length : free;
}

/** The prompt with a mention more, at the caret or at the end.
 * @param {string} name
 */
function promptWith(name) {
  if (mentioned(draft.prompt).includes(name)) return draft.prompt;
  const field = /** @type {HTMLTextAreaElement} */ (document.querySelector("#prompt"));
  const { prompt } = draft;
  if (!prompt.trim()) return `a {${name}}`;
  const atCaret = field.dataset.caret !== undefined && field.value === prompt;
  const at = atCaret ? Math.min(Number(field.dataset.caret), prompt.length) : prompt.length;
  const [before, after] = [prompt.slice(0, at), prompt.slice(at)];
  const mention = atCaret && /\s$/.test(before) ? `{${name}}` : `${before.trim() ? (/\s$/.test(before) ? "" : " ") : ""}and a {${name}}`;
  return before + mention + (after && !/^[\s.,;!?]/.test(after) ? " " : "") + after;
}

/** Places with one more: a row that nobody has touched makes room, any other keeps its places.
 * @param {string} name
 * @param {Shape} [shape]
 */
function placesWith(name, shape) {
  const { places } = draft;
  const made = { id: newId(), subject: name, z: frontmost(), weight: 1, feather: 0 };
  const row = rowOfBoxes(places.length + 1);
  const old = rowOfBoxes(places.length || 1);
  const joined = [...places].reverse(); // the newest is in front
  const untouched = joined.every((place, at) => JSON.stringify(place.shapes) === JSON.stringify([{ box: old[at] }]));
  if (shape || !untouched || places.length > 5) return [{ ...made, shapes: [shape ?? { box: boxInGap(places) }] }, ...places];
  return [...joined, made].map((place, at) => ({ ...place, shapes: [{ box: row[at] }] })).reverse();
}

/**
 * Let a subject join: a mention, and a place that can be moved.
 * @param {string} name
 * @param {{shape?: Shape, word?: string, mention?: boolean}} [how]
 */
export function join(name, { shape, word, mention = true } = {}) {
  const subject = subjectNamed(name);
  if (subject && !subject.fits && word === undefined) {
    toast(`${name} can't be used: ${subject.problem ?? "it was learned on another model"}`, { bad: true });
    return;
  }
  const known = placeNamed(name);
  if (known && shape) {
    addShape(name, shape); // one more, where it was pulled to
    return;
  }
  const members = memberNamed(name) ? draft.members : [...draft.members, memberFor(name, word)];
  const places = known ? draft.places : placesWith(name, shape);
  change({ members, places, prompt: mention ? promptWith(name) : draft.prompt });
  setUi({ active: name, selected: { place: (known ?? places[0]).id, shape: 0 } });
  announce(`${name} has a place`);
}

/**
 * Give a subject a shape: its first one, or one more beside the others it has.
 * @param {string} name
 * @param {Shape} shape
 */
export function addShape(name, shape) {
  const known = placeNamed(name);
  if (!known) {
    join(name, { shape });
    return;
  }
  const shapes = known.shapes.some((each) => "rest" in each) ? [shape] : [...known.shapes, shape];
  change({ places: draft.places.map((place) => (place === known ? { ...place, shapes } : place)) });
  setUi({ active: name, selected: { place: known.id, shape: shapes.length - 1 } });
  announce(`${name} has ${shapes.length} shapes`);
}

/** Whose place is drawn next: the chosen subject, or the first one without a place. */
export function nextToPlace() {
  const { active } = ui;
  if (active && memberNamed(active) && !placeNamed(active)) return active;
  return draft.members.find((member) => !placeNamed(member.name))?.name ?? active ?? draft.members[0]?.name ?? null;
}

/** @param {string} name */
export function leave(name) {
  const prompt = draft.prompt
    .replace(new RegExp(`\\s*(,|\\band)?\\s*(\\b(a|an|the)\\s+)?\\{${name}\\}`, "g"), "").trimStart();
  change({ members: draft.members.filter((member) => member.name !== name),
    places: draft.places.filter((place) => place.subject !== name), prompt });
  setUi({ active: null, selected: null });
  toast(`${name} left the picture.`);
}

/**
 * A new name everywhere in the draft.
 * @param {string} from
 * @param {string} to
 */
export function renameInDraft(from, to) {
  change({
    members: draft.members.map((member) => (member.name === from ? { ...member, name: to } : member)),
    places: draft.places.map((place) => (place.subject === from ? { ...place, subject: to } : place)),
    prompt: draft.prompt.replaceAll(`{${from}}`, `{${to}}`),
  });
  setUi({ active: to });
}

/**
 * A plain word, which needs no teaching.
 * @param {string} word
 * @param {Shape} [shape]
 */
export function joinWord(word, shape) {
  const text = word.trim();
  if (!text) return;
  let name = nameFrom(text);
  for (let turn = 2; memberNamed(name) || subjectNamed(name); turn += 1) name = `${nameFrom(text)}_${turn}`;
  join(name, { word: text, shape });
}

/** What of the library changed: its subjects' files are named anew, and names in the prompt are found. */
export function refreshMembers() {
  const members = draft.members.map((member) => {
    const subject = member.source === "word" ? undefined : subjectNamed(member.name);
    const sameFile = subject && (!member.sha256 || member.sha256 === subject.sha256);
    return sameFile ? { ...member, source: subject.source, class_word: subject.class_word, sha256: subject.sha256 } : member;
  });
  change({ members }, { undoable: false });
}

/** Members whose file is not here, or is another one.
 * @param {Member} member
 */
export function isMissing(member) {
  if (member.source === "word" || !server.info) return false;
  const subject = subjectNamed(member.name);
  return !subject || (member.sha256 !== null && member.sha256 !== subject.sha256);
}

/** Names that stand in the prompt and are subjects, but have not joined yet. */
export function joinMentioned() {
  const names = mentioned(draft.prompt).filter((name) => !memberNamed(name) && subjectNamed(name)?.fits);
  for (const name of names) change({ members: [...draft.members, memberFor(name)] });
}
