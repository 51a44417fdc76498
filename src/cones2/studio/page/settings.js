/** The picture's settings: two sliders, the seeds, and the rest folded away; the tools over the canvas. */

import { $, h } from "./dom.js";
import { setTool } from "./keys.js";
import { canRedo, canUndo, change, draft, memberNamed, on, redo, server, setUi, ui, undo } from "./store.js";

/** @typedef {import("./store.js").Draft} Draft */

const ASPECTS = [["1:1", 1, 1], ["3:2", 3, 2], ["2:3", 2, 3], ["16:9", 16, 9]];

/** A size of an aspect, with about as many pixels as the model likes.
 * @param {number} across
 * @param {number} down
 */
function sizeOf(across, down) {
  const { defaults, limits } = server.info;
  const unit = limits.multiple_of || 8;
  const side = Math.sqrt(defaults.width * defaults.height);
  const [width, height] = [Math.sqrt(across / down), Math.sqrt(down / across)].map((factor) => Math.round((side * factor) / unit) * unit);
  return { width: within(width, limits.width), height: within(height, limits.height) };
}

/** @param {number} value @param {[number, number]} limits */
const within = (value, [low, high]) => Math.min(high, Math.max(low, value));

/**
 * Tie a field to a number of the draft.
 * @param {string} selector
 * @param {keyof Draft} key
 * @param {(value: number) => number} [mend]
 */
function bind(selector, key, mend = (value) => value) {
  const field = $(selector);
  const isUndoable = key === "width" || key === "height";
  field.addEventListener(isUndoable ? "change" : "input", () => {
    const value = Number(field.value);
    if (field.value !== "" && Number.isFinite(value)) change({ [key]: mend(value) });
  });
  field.addEventListener("change", () => (field.value = String(draft[key])));
  on("draft info", () => {
    if (document.activeElement !== field || field.type === "range") field.value = String(draft[key]);
  });
}

/** @param {string} selector @param {keyof Draft} key @param {(info: any) => string[]} options */
function bindChoice(selector, key, options) {
  const field = $(selector);
  field.addEventListener("change", () => change({ [key]: field.value || null }));
  on("info", () => server.info && field.replaceChildren(...options(server.info).map((value) => h("option", { value }, value || "the model's own"))));
  on("draft info", () => (field.value = draft[key] ?? ""));
}

function startSliders() {
  const likeness = $("#likeness");
  likeness.addEventListener("input", () => {
    const strength = Number(likeness.value);
    change({ members: draft.members.map((member) => (member.name === ui.active ? { ...member, strength } : member)) }, { undoable: false });
  });
  bind("#layout-scale", "layout_scale");
  on("draft ui", () => {
    const member = ui.active ? memberNamed(ui.active) : undefined;
    const plain = !member || member.source === "word";
    likeness.disabled = plain;
    likeness.value = String(member?.strength ?? 1);
    $("#likeness-of").textContent = member ? member.name : "choose a subject";
    $("#likeness-value").textContent = plain ? "" : member.strength.toFixed(2);
    $("#layout-scale-value").textContent = Number(draft.layout_scale).toFixed(2);
    $("#avoid-row").hidden = !member;
    $("#avoid-of").textContent = member?.name ?? "";
    if (document.activeElement !== $("#avoid")) $("#avoid").value = member?.negative ?? "";
  });
  $("#avoid").addEventListener("input", () => change({ members: draft.members.map((member) =>
    (member.name === ui.active ? { ...member, negative: $("#avoid").value } : member)) }, { undoable: false }));
}

function startFields() {
  const most = () => server.info?.limits ?? {};
  const whole = (/** @type {number} */ low, /** @type {number} */ high) => (/** @type {number} */ value) => Math.round(within(value, [low, high]));
  const side = (/** @type {"width" | "height"} */ key) => (/** @type {number} */ value) => {
    const unit = most().multiple_of || 8;
    return within(Math.round(value / unit) * unit, most()[key] ?? [64, 2048]);
  };
  bind("#seed", "seed", whole(0, 2 ** 32 - 1));
  bind("#count", "count", (value) => Math.round(within(value, [1, most().seeds ?? 8])));
  bind("#steps", "steps", whole(1, 1000));
  bind("#guidance", "guidance_scale", (value) => within(value, [0, 100]));
  bind("#width", "width", side("width"));
  bind("#height", "height", side("height"));
  bindChoice("#preset", "preset", (info) => info.presets);
  bindChoice("#scheduler", "scheduler", (info) => ["", ...info.schedulers]);
  const negative = $("#negative");
  negative.addEventListener("input", () => change({ negative_prompt: negative.value }, { undoable: false }));
  for (const [selector, key] of /** @type {const} */ ([["#measure", "measure_attention"], ["#advance", "advance"]])) {
    $(selector).addEventListener("change", () => change({ [key]: $(selector).checked }));
    on("draft", () => ($(selector).checked = draft[key]));
  }
  on("draft", () => {
    if (document.activeElement !== negative) negative.value = draft.negative_prompt;
  });
  $("#dice").addEventListener("click", () => change({ seed: Math.floor(Math.random() * 1e6) }));
}

function startAspects() {
  const buttons = ASPECTS.map(([name, across, down]) => h("button", { type: "button", class: "aspect", "aria-pressed": "false",
    onclick: () => server.info?.model && change(sizeOf(Number(across), Number(down))) }, String(name)));
  $("#aspects").append(...buttons);
  on("draft info", () => buttons.forEach((button, at) => {
    const size = server.info?.model && sizeOf(Number(ASPECTS[at][1]), Number(ASPECTS[at][2]));
    button.setAttribute("aria-pressed", String(Boolean(size) && size.width === draft.width && size.height === draft.height));
  }));
}

function startTools() {
  const buttons = [...document.querySelectorAll("[data-tool]")];
  for (const button of buttons) button.addEventListener("click", () => setTool(/** @type {HTMLElement} */ (button).dataset.tool ?? "move"));
  $("#snap").addEventListener("click", () => setUi({ snap: !ui.snap }));
  $("#undo").addEventListener("click", undo);
  $("#redo").addEventListener("click", redo);
  $("#brush-size").addEventListener("input", () => setUi({ brush: Number($("#brush-size").value) / 100 }));
  $("#brush-soft").addEventListener("change", () => setUi({ soft: $("#brush-soft").checked }));
  on("draft ui", () => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(/** @type {HTMLElement} */ (button).dataset.tool === ui.tool));
    $("#snap").setAttribute("aria-pressed", String(ui.snap));
    $("#brush-row").hidden = ui.tool !== "brush" && ui.tool !== "erase";
    $("#brush-size").value = String(Math.round(ui.brush * 100));
    $("#canvas").setAttribute("data-tool", ui.tool);
    $("#undo").disabled = !canUndo();
    $("#redo").disabled = !canRedo();
  });
}

export function start() {
  startSliders();
  startFields();
  startAspects();
  startTools();
}
