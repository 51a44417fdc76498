/** Files: dropped anywhere or chosen, read by the server or here; and what can be taken away. */

import { $, ask, attempt, saveFile, toast } from "./dom.js";
import { call, form } from "./api.js";
import { memberFor } from "./cast.js";
import { fromTable, toLayout, toTable } from "./layouts.js";
import { load } from "./request.js";
import { change, draft, memberNamed, subjectNamed } from "./store.js";
import { importSubject } from "./subjects.js";
import { teachFrom } from "./teach.js";

const LARGEST = 30e6;

/**
 * Load what a file holds: a picture of ours or of other tools, a layout, a table of boxes, a subject.
 * @param {File} file
 */
export async function openFile(file) {
  if (/\.safetensors$/i.test(file.name)) {
    await importSubject(file);
    return;
  }
  if (file.size > LARGEST) {
    toast(`${file.name} has ${Math.round(file.size / 1e6)} MB; a picture or layout has at most ${LARGEST / 1e6} MB.`, { bad: true });
    return;
  }
  if (/\.(jpe?g|webp|heic|avif|bmp|tiff?)$/i.test(file.name)) {
    teachFrom([file]);
    return;
  }
  if (file.size < 1e6 && (file.type === "application/json" || /\.json$/i.test(file.name)) && readTable(await file.text())) return;
  await attempt(async () => {
    const found = await call("POST", "/v1/requests/read", form({ file }));
    await load(found.request);
    const missing = found.missing?.map((/** @type {any} */ each) => each.name).join(", ");
    toast([`${file.name} is loaded.`, ...(found.notes ?? []), missing ? `Not here: ${missing}. Import the files.` : ""].filter(Boolean).join(" "));
  });
}

/**
 * Read a table of boxes; it adds places, and words for names that nobody has.
 * @param {string} text
 * @returns {boolean} whether it was one
 */
function readTable(text) {
  let rows;
  try {
    rows = fromTable(JSON.parse(text));
  } catch {
    return false;
  }
  if (!rows) return false;
  /** @type {Map<string, import("./shapes.js").Place>} */
  const places = new Map();
  const members = [...draft.members];
  for (const { place, word } of rows) {
    const known = places.get(place.subject);
    places.set(place.subject, known ? { ...known, shapes: [...known.shapes, ...place.shapes] } : place);
    if (!members.some((member) => member.name === place.subject)) {
      members.push({ ...memberFor(place.subject, subjectNamed(place.subject) ? undefined : word), colour: members.length });
    }
  }
  const prompt = draft.prompt.trim() ? draft.prompt : [...places.keys()].map((name) => `a {${name}}`).join(" and ");
  change({ places: [...places.values()], members, prompt });
  toast(`${rows.length} boxes are loaded.`);
  return true;
}

/** @param {string} name @param {any} data */
const saveJson = (name, data) => saveFile(name, new Blob([JSON.stringify(data, null, 2)], { type: "application/json" }));

function startDrop() {
  const shade = $("#drop");
  let depth = 0;
  const isFile = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!isFile(event) || document.querySelector("dialog[open]")) return;
    depth += 1;
    shade.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!isFile(event)) return;
    depth = Math.max(0, depth - 1);
    if (!depth) shade.hidden = true;
  });
  addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    shade.hidden = true;
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    if (files.length > 1 && files.every((file) => file.type.startsWith("image/"))) teachFrom(files);
    else void openFile(files[0]);
  });
}

export function start() {
  startDrop();
  $("#open-file").addEventListener("click", () => $("#any-file").click());
  $("#any-file").addEventListener("change", () => {
    const [file] = $("#any-file").files;
    $("#any-file").value = "";
    if (file) void openFile(file);
  });
  $("#export-layout").addEventListener("click", () => saveJson("layout.json", toLayout(draft.places) ?? { version: 1, regions: {} }));
  $("#export-table").addEventListener("click", () => saveJson("boxes.json", toTable(draft.places, (name) => memberNamed(name)?.class_word ?? name)));
  $("#paste-table").addEventListener("click", async () => {
    const text = await ask("Paste boxes", "Rows such as {\"id\": \"rex\", \"bbox\": [top, left, bottom, right]}, 0 to 1000", "", "Load");
    if (text && !readTable(text)) toast("That is no table of boxes.", { bad: true });
  });
}
