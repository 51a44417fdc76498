/** Teaching: photos in, doubts told, three fields; then the curve, the previews, and what there is so far. */

import { $, attempt, duration, h, openDialog, put as fill, s, toast } from "./dom.js";
import { call, form, post } from "./api.js";
import { cancel, isActive, put, stateLine } from "./jobs.js";
import { addPhotos, card, clearPhotos, doubts, lookAt, onPhotos, photos } from "./photos.js";
import { nameFrom } from "./layouts.js";
import { on, server, subjectNamed } from "./store.js";
import { tryIt } from "./subjects.js";

let watched = "";
let timer = 0;

/** @param {File[]} files */
export function teachFrom(files) {
  showForm();
  addPhotos(files, server.info?.limits?.photos ?? 12);
  look();
  if (!$("#teach").open) openDialog($("#teach"));
}

function look() {
  clearTimeout(timer);
  timer = setTimeout(() => attempt(() => lookAt($("#teach-class").value.trim())), 300);
}

function showForm() {
  watched = "";
  render();
}

function renderPhotos() {
  $("#teach-photos").replaceChildren(...photos.map(card));
  $("#teach-doubts").replaceChildren(...doubts.map((text) => h("li", {}, text)));
  renderReady();
}

/** What is still missing before Teach can be pressed. */
function missing() {
  const usable = photos.filter((photo) => photo.ok !== false).length;
  const name = $("#teach-name").value.trim();
  if (!usable) return photos.length ? "None of these photos can be used." : "Drop three to five photos of one subject.";
  if (!name) return "Give it a name.";
  if (nameFrom(name) !== name) return `A name has letters, digits and _ only: try ${nameFrom(name)}.`;
  if (subjectNamed(name)?.source === "library") return `You have a ${name} already: choose another name.`;
  if (!$("#teach-class").value.trim()) return "Say what it is, in a plain word.";
  return "";
}

function renderReady() {
  const words = server.info?.model?.knows_class_words;
  const word = $("#teach-class").value.trim();
  const strange = words && word && !words.includes(word);
  $("#teach-force-row").hidden = !strange;
  $("#teach-strange").textContent = strange ? `${server.info.model.name} knows ${words.join(", ")}; of ${word} it may know nothing.` : "";
  const why = missing();
  $("#teach-start").disabled = Boolean(why);
  $("#teach-why").textContent = why;
  const usable = photos.filter((photo) => photo.ok !== false).length;
  const meter = $("#teach-count");
  meter.textContent = usable ? `${usable} ${usable === 1 ? "photo" : "photos"}${usable < 3 ? ", three to five are better" : ""}` : "";
}

/** @param {Event} event */
async function send(event) {
  event.preventDefault();
  if (missing() || $("#teach-start").disabled) return;
  const used = photos.filter((photo) => photo.ok !== false);
  $("#teach-start").disabled = true;
  const job = await attempt(() => call("POST", "/v1/subjects", form({
    name: $("#teach-name").value.trim(), class_word: $("#teach-class").value.trim(), recipe: $("#teach-recipe").value, steps: $("#teach-steps").value,
    seed: $("#teach-seed").value, force_class: $("#teach-force").checked && !$("#teach-force-row").hidden ? "true" : undefined,
    crops: used.some((photo) => photo.crop) ? JSON.stringify(used.map((photo) => photo.crop)) : undefined, photos: used.map((photo) => photo.file) })));
  renderReady();
  if (!job) return;
  put(job);
  watched = job.id;
  clearPhotos();
  $("#teach-form").reset();
  render();
}

/** Losses as a line, smoothed, and likenesses of what was drawn as points; both told in words.
 * @param {[number, number][]} losses
 * @param {[number, number][]} likenesses
 * @param {number} steps
 */
function curve(losses, likenesses, steps) {
  if (!losses || losses.length < 2) return h("p", { class: "hint" }, "The curve appears with the first steps.");
  let mean = losses[0][1];
  const smooth = losses.map(([step, loss]) => [step, (mean = mean * 0.8 + loss * 0.2)]);
  const values = losses.map(([, loss]) => loss);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const at = (/** @type {number[][]} */ points, from = low, to = high) => points.map(([step, value]) => `${(step / Math.max(1, steps)) * 300},${76 - ((value - from) / (to - from || 1)) * 70}`).join(" ");
  const best = bestOf(likenesses);
  const told = [`loss ${smooth[0][1].toFixed(3)} → ${mean.toFixed(3)}`, best && `likeness ${best[1].toFixed(2)} at step ${best[0]}${likenesses.length > 1 ? `, the best of ${likenesses.length}` : ""}`].filter(Boolean).join("; ");
  return h("figure", { class: "curve" }, s("svg", { viewBox: "0 0 300 80", preserveAspectRatio: "none", role: "img", "aria-label": told },
    s("polyline", { class: "raw", points: at(losses) }), s("polyline", { class: "smooth", points: at(smooth) }),
    best ? s("polyline", { class: "likeness", points: at(likenesses, 0, 1) }) : null),
  h("figcaption", {}, told));
}

/** The step that is most like the photos, the first of equals, and how like it is.
 * @param {[number, number][]} [likenesses]
 */
const bestOf = (likenesses) => likenesses?.reduce((best, each) => (each[1] > best[1] ? each : best), likenesses[0]);

/** @param {any} job */
function learning(job) {
  const name = job.subject ?? job.request?.name ?? "";
  const active = isActive(job);
  return [h("p", { class: "now-head" }, h("span", { class: `dot ${job.state}`, "aria-hidden": "true" }), h("b", {}, name), " ", h("span", {}, stateLine(job))),
    active ? h("progress", { max: job.steps || 1, value: job.step || 0, "aria-label": `Progress of ${name}` }) : null,
    h("div", { class: "learning" }, job.preview ? h("img", { class: "sample", src: job.preview, alt: `What ${name} looks like so far`, width: 192, height: 192 }) : null, curve(job.losses, job.likenesses, job.steps)),
    job.warnings?.length ? h("ul", { class: "warnings" }, job.warnings.map((/** @type {string} */ text) => h("li", {}, text))) : null,
    job.state === "failed" ? h("div", { class: "failure" }, h("p", {}, job.error?.title), job.error?.detail ? h("details", {}, h("summary", {}, "Details"), h("pre", {}, job.error.detail)) : null,
      h("button", { type: "button", onclick: () => attempt(async () => put(await post(`/v1/jobs/${job.id}/retry`))) }, "Try again")) : null,
    h("div", { class: "row end wrap" },
      active ? h("button", { type: "button", class: "danger", onclick: () => cancel(job) }, "Stop, keep nothing") : null,
      active ? h("button", { type: "button", id: "teach-finish", disabled: job.state !== "running", onclick: () => attempt(async () => put(await post(`/v1/jobs/${job.id}/finish`))) }, job.likenesses?.length ? "Stop, keep the best" : "Stop, keep what there is") : null,
      active ? h("button", { type: "button", class: "primary", onclick: () => $("#teach").close() }, "Go on in the background") : null,
      active ? null : h("button", { type: "button", onclick: showForm }, "Teach another"),
      job.state === "succeeded" ? h("button", { type: "button", class: "primary", onclick: () => ($("#teach").close(), tryIt(name)) }, "Try it") : null)];
}

let last = 0;
function render() {
  const job = watched && server.jobs.get(watched);
  $("#teach-form").hidden = Boolean(job);
  $("#teach-progress").hidden = !job;
  $("#teach-title").textContent = job ? `Learning ${job.request?.name ?? job.subject ?? ""}` : "Teach a subject";
  if (!job) {
    renderPhotos();
    return;
  }
  if (!$("#teach").open) return;
  const focused = $("#teach-progress").contains(document.activeElement) && (document.activeElement?.id || document.activeElement?.textContent);
  fill($("#teach-progress"), learning(job));
  if (focused) [...$("#teach-progress").querySelectorAll("button")].find((each) => (each.id || each.textContent) === focused)?.focus();
}

/** Learnings that run, as chips in the panel of subjects. */
function renderRunning() {
  const running = [...server.jobs.values()].filter((job) => job.mine && job.kind === "learn" && (isActive(job) || job.state === "failed"));
  const done = watched && server.jobs.get(watched)?.state === "succeeded" && !$("#teach").open;
  if (done) {
    const job = server.jobs.get(watched);
    const { name } = job.request;
    watched = "";
    toast(`${name} is learned${job.kept && job.kept < job.steps ? `: step ${job.kept} of ${job.steps} is kept` : ""}.`, { action: "Try it", run: () => tryIt(name) });
  }
  $("#learnings").replaceChildren(...running.map((job) => h("li", { class: "chip" }, h("button", { type: "button", class: "chip-main", onclick: () => openJob(job.id) },
    h("span", { class: `dot ${job.state}`, "aria-hidden": "true" }), h("span", { class: "chip-text" }, h("b", {}, job.request?.name), h("span", { class: "hint" }, job.eta_s ? `${duration(job.eta_s)} left` : stateLine(job)))))));
}

/** @param {string} id */
function openJob(id) {
  watched = id;
  if (!$("#teach").open) openDialog($("#teach"));
  render();
}

export function start() {
  onPhotos(renderPhotos);
  $("#teach-open").addEventListener("click", () => {
    if (watched && !isActive(server.jobs.get(watched) ?? {})) watched = "";
    openDialog($("#teach"));
    render();
  });
  $("#teach-files").addEventListener("change", () => {
    teachFrom([...$("#teach-files").files]);
    $("#teach-files").value = "";
  });
  const zone = $("#teach");
  zone.addEventListener("dragover", (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
  zone.addEventListener("drop", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    event.stopPropagation();
    teachFrom([...(event.dataTransfer?.files ?? [])]);
  });
  $("#teach-form").addEventListener("submit", send);
  for (const id of ["#teach-name", "#teach-class"]) $(id).addEventListener("input", renderReady);
  $("#teach-class").addEventListener("change", look);
  on("info", () => {
    if (!server.info?.model) return;
    $("#class-words").replaceChildren(...(server.info.model.knows_class_words ?? []).map((/** @type {string} */ word) => h("option", { value: word })));
    $("#teach-recipe").replaceChildren(h("option", { value: "" }, `the model's own (${server.info.model.recipe})`), ...server.info.recipes.map((/** @type {string} */ name) => h("option", { value: name }, name)));
    $("#teach-drawings").hidden = !server.info.model.drawings_only;
    $("#teach-drawings").textContent = `${server.info.model.name} draws drawings only, nothing of the real world: photos of a real thing are beyond it.`;
  });
  on("jobs", () => (render(), renderRunning()));
  on("progress subjects", () => {
    if (performance.now() - last < 200) return;
    last = performance.now();
    if (watched) render();
    renderRunning();
  });
}
