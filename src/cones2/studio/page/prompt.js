/** The prompt with its coloured names, and what is doubtful in it: at once from here, a moment later from the server. */

import { $, attempt, h } from "./dom.js";
import { post } from "./api.js";
import { isMissing, join, joinMentioned, joinWord, mentioned } from "./cast.js";
import { fromLayout, toLayout } from "./layouts.js";
import { boundsOf, inkOn } from "./shapes.js";
import { change, colourOf, draft, memberNamed, on, placeNamed, server, subjectNamed } from "./store.js";

/** @typedef {{kind: string, name: string | null, text: string, blocks: boolean, fix?: [string, () => void]}} Doubt */

/** @type {{prompt: string, tokens: number, limit: number, problems: any[]} | null} */
let answer = null;

/** Everything that this page can tell by itself.
 * @returns {Doubt[]}
 */
export function doubts() {
  const { prompt } = draft;
  const names = mentioned(prompt);
  /** @type {Doubt[]} */
  const found = [];
  const add = (/** @type {string} */ kind, /** @type {string | null} */ name, /** @type {string} */ text, /** @type {[string, () => void]} */ fix, blocks = false) =>
    found.push({ kind, name, text, blocks, fix });
  const bare = prompt.replace(/\{[^{}]*\}/g, "");
  if (/[{}]/.test(bare)) found.push({ kind: "brace", name: null, text: "a brace is open: write {name}", blocks: true });
  for (const name of names) {
    const member = memberNamed(name);
    if (!member) add("unknown_name", name, `nobody here is called ${name || "{}"}`, ["use as a plain word", () => useAsWord(name)], true);
    else if (isMissing(member)) found.push({ kind: "missing", name, text: `${name}'s file is not here: import it`, blocks: true });
    else if (!placeNamed(name)) add("no_place", name, `${name} has no place`, ["place it", () => join(name, { mention: false })]);
  }
  for (const place of draft.places) {
    if (!names.includes(place.subject)) add("no_mention", place.subject, `${place.subject} has a place but no mention`, ["mention it", () => join(place.subject)]);
    else if (isCovered(place)) found.push({ kind: "covered", name: place.subject, text: `${place.subject} is hidden behind another place`, blocks: true });
  }
  return found;
}

/** Whether a box lies wholly within a box in front of it.
 * @param {import("./shapes.js").Place} place
 */
function isCovered(place) {
  return place.shapes.every((shape) => {
    const [x0, y0, x1, y1] = boundsOf(shape);
    return draft.places.some((other) => other.z > place.z && other.shapes.some((each) => {
      if (!("box" in each)) return false;
      return each.box[0] <= x0 && each.box[1] <= y0 && each.box[2] >= x1 && each.box[3] >= y1;
    }));
  });
}

/** @param {string} name */
function useAsWord(name) {
  if (/^[A-Za-z_]\w{0,63}$/.test(name)) join(name, { word: name.replaceAll("_", " "), mention: false });
  else joinWord(name);
}

/** All doubts: the server's after those of this page, none twice. */
function allDoubts() {
  const found = doubts();
  const isNew = (/** @type {any} */ problem) => !found.some((doubt) => doubt.name === problem.name && doubt.kind === problem.kind);
  const remote = answer?.prompt === draft.prompt ? answer.problems.filter(isNew) : [];
  return [...found, ...remote.map((problem) => ({ ...problem, blocks: problem.kind === "other" && problem.blocks !== false }))];
}

/** Why Make can't be pressed; empty where it can. */
export function obstacle() {
  if (!server.info?.model) return "The model is not there yet.";
  if (!draft.prompt.trim()) return "Write what to draw, or choose a subject.";
  return allDoubts().find((doubt) => doubt.blocks)?.text ?? "";
}

function renderDoubts() {
  const found = allDoubts();
  const names = mentioned(draft.prompt).filter((name) => memberNamed(name) && !found.some((doubt) => doubt.name === name));
  const rows = [
    ...names.map((name) => {
      const swatch = h("span", { class: "swatch" });
      swatch.style.background = colourOf(name);
      return h("li", { class: "fine" }, swatch, name, h("span", { class: "visually-hidden" }, " is fine"));
    }),
    ...found.map((doubt) => h("li", { class: doubt.blocks ? "bad" : "doubt" }, h("span", { "aria-hidden": "true" }, "!"), doubt.text,
      doubt.fix ? h("button", { type: "button", class: "link", onclick: doubt.fix[1] }, doubt.fix[0]) : null)),
  ];
  $("#doubts").replaceChildren(...rows);
  const counted = $("#tokens");
  counted.textContent = answer && answer.limit ? `${answer.tokens} / ${answer.limit} tokens` : "";
  counted.classList.toggle("bad", Boolean(answer && answer.tokens > answer.limit));
  $("#suggest").disabled = !mentioned(draft.prompt).some((name) => memberNamed(name));
}

/** The prompt behind the field, with a colour under each name. */
function renderMirror() {
  const parts = draft.prompt.split(/(\{[^{}]*\})/).map((part) => {
    const name = part.startsWith("{") ? part.slice(1, -1) : "";
    if (!name || !memberNamed(name)) return h("span", { class: name ? "unknown" : "" }, part);
    const mark = h("mark", {}, part);
    mark.style.background = colourOf(name);
    mark.style.color = inkOn(colourOf(name));
    return mark;
  });
  $("#prompt-mirror").replaceChildren(...parts, "\n");
}

let timer = 0;
let asked = "";
function check() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const subjects = Object.fromEntries(draft.members.map((member) => [member.name, member.class_word]));
    const { prompt } = draft;
    const layout = toLayout(draft.places);
    const body = JSON.stringify({ prompt, subjects });
    if (body === asked || !server.info) return;
    asked = body;
    try {
      answer = { prompt, ...(await post("/v1/prompts/check", { prompt, subjects, layout })) };
    } catch {
      asked = ""; // the banner tells that the server is gone; a prompt that is refused is told when it is sent
    }
    renderDoubts();
    $("#make").dispatchEvent(new Event("refresh"));
  }, 250);
}

/** Fill the places of all subjects that have none; they are boxes like others. */
async function suggest() {
  const subjects = mentioned(draft.prompt).map(memberNamed).filter((member) => member !== undefined)
    .map((member) => ({ name: member.name, class_word: member.class_word }));
  const size = draft.width ? { width: draft.width, height: draft.height } : { width: 512, height: 512 }; // no model yet
  const found = await attempt(() => post("/v1/layouts/suggest", { subjects, ...size }));
  if (!found) return;
  const fresh = await fromLayout(found.layout);
  change({ places: [...draft.places.filter((place) => !fresh.some((each) => each.subject === place.subject)), ...fresh] });
}

export function start() {
  const field = $("#prompt");
  field.addEventListener("input", () => change({ prompt: field.value }, { undoable: false }));
  field.addEventListener("blur", () => (field.dataset.caret = field.selectionStart));
  field.addEventListener("change", joinMentioned);
  field.addEventListener("scroll", () => ($("#prompt-mirror").scrollTop = field.scrollTop));
  $("#suggest").addEventListener("click", suggest);
  on("draft subjects info", () => {
    if (field.value !== draft.prompt) field.value = draft.prompt;
    const known = mentioned(draft.prompt).some((name) => !memberNamed(name) && subjectNamed(name)?.fits && draft.prompt.includes(`{${name}}`));
    if (known) joinMentioned();
    renderMirror();
    renderDoubts();
    check();
  });
}
