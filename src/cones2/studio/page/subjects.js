/** Subjects as chips: a click or a drag lets one join; the library is kept in order here too. */

import { $, announce, ask, attempt, h, iconButton, openDialog, put, toast } from "./dom.js";
import { call, form, get, patch, post, remove } from "./api.js";
import { join, joinWord, refreshMembers, renameInDraft } from "./cast.js";
import { pointAt } from "./canvas.js";
import { nameFrom } from "./layouts.js";
import { boxBetween } from "./shapes.js";
import { change, colourOf, draft, memberNamed, on, server, tell } from "./store.js";

/** @typedef {any} Subject */

const PER_LOOK = 24;
let wanted = "";
let most = PER_LOOK;

/** Ask for the subjects anew. */
export async function refresh() {
  const found = await get("/v1/subjects").catch(() => null);
  if (!found) return;
  const seen = new Set();
  server.subjects = found.subjects.filter((/** @type {Subject} */ subject) => !seen.has(subject.name) && seen.add(subject.name));
  tell("subjects");
  refreshMembers();
}

/** @param {string} name @param {string} shown @param {string} [url] */
export function face(name, shown, url) {
  const holder = h("span", { class: "face", "aria-hidden": "true" }, url ? h("img", { src: url, alt: "", loading: "lazy", draggable: "false" }) : shown.slice(0, 1).toUpperCase());
  if (memberNamed(name)) holder.style.outlineColor = colourOf(name);
  return holder;
}

/** @param {number} bytes */
const size = (bytes) => (bytes ? `${Math.max(1, Math.round(bytes / 1000))} KB` : "");

/** @param {Subject} subject */
function chip(subject) {
  const inDraft = Boolean(memberNamed(subject.name));
  const doubt = subject.fits ? "" : subject.problem ?? "learned on another model";
  return h("li", { class: `chip${inDraft ? " in" : ""}${subject.fits ? "" : " unfit"}` },
    h("button", { type: "button", class: "chip-main", draggable: subject.fits ? "true" : "false", "aria-disabled": subject.fits ? null : "true",
      title: doubt || `${subject.class_word}, ${size(subject.bytes)}`, "aria-label": `${subject.name} ${subject.class_word}${doubt ? `: ${doubt}` : inDraft ? ", in the picture" : ""}`,
      onclick: () => join(subject.name), ondragstart: (/** @type {DragEvent} */ event) => event.dataTransfer?.setData("text/x-subject", subject.name) },
    face(subject.name, subject.name, subject.thumb), h("span", { class: "chip-text" }, h("b", {}, subject.name), h("span", { class: "hint" }, subject.fits ? subject.class_word : "of another model"))),
    iconButton("dots", `More about ${subject.name}`, () => openSubject(subject)));
}

function render() {
  const focused = document.activeElement?.closest("#subjects") && document.activeElement?.getAttribute("aria-label");
  const text = wanted.trim().toLowerCase();
  const found = server.subjects.filter((subject) => `${subject.name} ${subject.class_word}`.toLowerCase().includes(text));
  put($("#subjects"), [["library", "Yours"], ["example", "Examples"]].map(([source, title]) => {
    const all = found.filter((subject) => subject.source === source);
    return all.length > 0 && h("section", { "aria-label": title }, h("h3", {}, title), h("ul", { class: "chips" }, all.slice(0, most).map(chip)),
      all.length > most ? h("button", { type: "button", class: "link", onclick: () => ((most += 200), render()) }, `${all.length - most} more`) : null);
  }));
  $("#subjects-empty").hidden = Boolean(text) || server.subjects.some((subject) => subject.source === "library");
  $("#use-word").hidden = !text;
  $("#use-word").textContent = `Use "${wanted.trim()}" as a plain word`;
  if (focused) [...$("#subjects").querySelectorAll("button")].find((each) => each.getAttribute("aria-label") === focused)?.focus();
}

/** What was typed joins: a subject of that name, or a plain word. */
function joinTyped() {
  const text = $("#subject-search").value.trim();
  if (!text) return;
  if (server.subjects.some((subject) => subject.name === text)) join(text);
  else joinWord(text);
  $("#subject-search").value = wanted = "";
  render();
}

/** What can be done with a subject: rename, export, push, delete.
 * @param {Subject} subject
 */
function openSubject(subject) {
  const own = subject.source === "library";
  const dialog = h("dialog", { class: "small", "aria-labelledby": "subject-title", onclose: () => dialog.remove() },
    h("div", { class: "dialog-head" }, h("h2", { id: "subject-title" }, subject.name), iconButton("close", "Close", () => dialog.close())),
    h("div", { class: "subject-card" }, subject.thumb ? h("img", { src: subject.thumb, alt: `A photo of ${subject.name}`, width: 128, height: 128 }) : null,
      h("dl", { class: "facts-list" }, ...[["class word", subject.class_word], ["size", size(subject.bytes)], ["learned on", subject.learned_on], ["from", own ? "your library" : "the examples"], ["here", subject.fits ? "can be used" : subject.problem]]
        .filter(([, value]) => value).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]))),
    h("div", { class: "row wrap" },
      subject.fits ? h("button", { type: "button", class: "primary", onclick: () => (dialog.close(), tryIt(subject.name)) }, "Try it") : null,
      h("a", { class: "button", href: `/v1/subjects/${encodeURIComponent(subject.name)}/file`, download: `${subject.name}.safetensors` }, "Export"),
      own ? h("button", { type: "button", onclick: () => (dialog.close(), void rename(subject)) }, "Rename") : null,
      own ? h("button", { type: "button", onclick: () => (dialog.close(), void push(subject)) }, "Push to the Hub") : null,
      own ? h("button", { type: "button", class: "danger", onclick: () => (dialog.close(), void discard(subject)) }, "Delete") : null));
  document.body.append(dialog);
  openDialog(dialog);
}

/** A first picture of a subject.
 * @param {string} name
 */
export function tryIt(name) {
  change({ prompt: `a photo of {${name}}`, members: [], places: [] });
  join(name);
}

/** @param {Subject} subject */
async function rename(subject) {
  const name = await ask(`Rename ${subject.name}`, "Name", subject.name);
  if (!name || name === subject.name) return;
  await attempt(async () => {
    await patch(`/v1/subjects/${encodeURIComponent(subject.name)}`, { name });
    renameInDraft(subject.name, name);
    await refresh();
    announce(`${subject.name} is now called ${name}`);
  });
}

/** @param {Subject} subject */
async function push(subject) {
  const repository = await ask(`Push ${subject.name} to the Hub`, "Repository, owner/name; it will be private", "", "Push");
  if (!repository) return;
  const done = await attempt(() => post(`/v1/subjects/${encodeURIComponent(subject.name)}/push`, { repository, private: true }));
  if (done) toast(`${subject.name} is on its way to ${repository}.`);
}

/** @param {Subject} subject */
async function discard(subject) {
  await attempt(async () => {
    await remove(`/v1/subjects/${encodeURIComponent(subject.name)}`);
    await refresh();
    toast(`${subject.name} is deleted.`, { action: "Undo", run: () => void attempt(() => restore(subject.name)) });
  });
}

/** @param {string} name */
async function restore(name) {
  const bin = await get("/v1/subjects/bin");
  const entry = (bin.subjects ?? bin).find((/** @type {any} */ each) => each.name === name);
  if (!entry) throw new Error(`${name} is not in the bin any more.`);
  await post(`/v1/subjects/bin/${entry.id}/restore`);
  await refresh();
}

/** Take in a subject's file.
 * @param {File} file
 */
export async function importSubject(file) {
  const name = await ask("Import a subject", "Name it", nameFrom(file.name.replace(/\.safetensors$/i, "")), "Import");
  if (!name) return;
  await attempt(async () => {
    await call("POST", "/v1/subjects/import", form({ file, name }));
    await refresh();
    toast(`${name} is in your library.`, { action: "Use it", run: () => join(name) });
  });
}

/** A subject that is dropped on the canvas gets its place there.
 * @param {DragEvent} event
 */
function dropOnCanvas(event) {
  const name = event.dataTransfer?.getData("text/x-subject");
  if (!name) return;
  event.preventDefault();
  event.stopPropagation();
  const [x, y] = pointAt(event);
  const [across, down] = [0.17, 0.2];
  const [cx, cy] = [Math.min(1 - across, Math.max(across, x)), Math.min(1 - down, Math.max(down, y))];
  join(name, { shape: { box: boxBetween(cx - across, cy - down, cx + across, cy + down) } });
}

export function start() {
  $("#subject-search").addEventListener("input", () => ((wanted = $("#subject-search").value), render()));
  $("#subject-form").addEventListener("submit", (/** @type {Event} */ event) => (event.preventDefault(), joinTyped()));
  $("#use-word").addEventListener("click", joinTyped);
  $("#import-open").addEventListener("click", () => $("#import-file").click());
  $("#import-file").addEventListener("change", () => {
    const [file] = $("#import-file").files;
    $("#import-file").value = "";
    if (file) void importSubject(file);
  });
  const stage = $("#stage");
  stage.addEventListener("dragover", (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("text/x-subject") && event.preventDefault());
  stage.addEventListener("drop", dropOnCanvas);
  let shown = "";
  on("subjects draft", () => {
    const now = JSON.stringify([draft.members, server.subjects]);
    if (now === shown) return;
    shown = now;
    render();
  });
}
