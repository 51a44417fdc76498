/** Make and cancel; the card of the job that runs; the queue. All of it follows from the server's list of jobs. */

import { $, announce, attempt, duration, h, iconButton, openDialog, put as fill, toast } from "./dom.js";
import { post } from "./api.js";
import { showBackdrop } from "./canvas.js";
import { fileUrl, pictureOf, thumbUrl } from "./pictures.js";
import { obstacle } from "./prompt.js";
import { requestOf } from "./request.js";
import { change, draft, on, server, tell } from "./store.js";
import { openPicture } from "./viewer.js";

/** @typedef {any} Job */

export const isActive = (/** @type {Job} */ job) => job.state === "queued" || job.state === "running";
/** This person's drawings, the newest first. */
const drawings = () => [...server.jobs.values()].filter((job) => job.mine && job.kind === "draw").sort((a, b) => (a.created < b.created ? 1 : -1));
const activeDrawings = () => drawings().filter(isActive);
/** The job whose card is shown: the one that runs, or else the newest. */
const current = () => drawings().find((job) => job.state === "running") ?? drawings().find((job) => job.state === "queued") ?? drawings()[0];

/** One key for one press, also when it is sent again because no answer came. */
const press = { body: "", key: "", at: 0, busy: false };

/** A key that no other press has; `randomUUID` is missing where the page is not served securely. */
const freshKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Ask for the draft's picture.
 * @param {{cancelFirst?: boolean}} [how]
 */
export async function make({ cancelFirst = false } = {}) {
  const why = obstacle();
  if (why) {
    toast(why, { bad: true });
    return;
  }
  if (press.busy || performance.now() - press.at < 600) return; // the second half of a double click
  press.busy = true;
  const request = requestOf();
  const body = JSON.stringify(request);
  if (press.body !== body) Object.assign(press, { body, key: freshKey() });
  await attempt(async () => {
    if (cancelFirst) await Promise.all(activeDrawings().map((job) => post(`/v1/jobs/${job.id}/cancel`).then(put)));
    put(await post("/v1/pictures", request, { "Idempotency-Key": press.key }));
    Object.assign(press, { body: "", at: performance.now() });
    if (draft.advance) change({ seed: draft.seed + draft.count }, { undoable: false });
  });
  press.busy = false;
}

/** Cancel this person's drawing that runs, or the newest that waits. */
export async function cancelMine() {
  const job = activeDrawings().find((each) => each.state === "running") ?? activeDrawings()[0];
  if (job) await cancel(job);
  else announce("Nothing of yours is being made");
}

/** @param {Job} job */
export function cancel(job) {
  press.at = 0; // a press after this one is no second half of a double click
  return attempt(async () => put(await post(`/v1/jobs/${job.id}/cancel`)));
}
/** @param {Job} job */
const retry = (job) => attempt(async () => put(await post(`/v1/jobs/${job.id}/retry`)));

const SAID = { queued: "waits in the queue", running: "has begun", succeeded: "is done", failed: "has failed", cancelled: "is cancelled" };

/** How far a job is; what is not named here is over. */
const RANKS = /** @type {Record<string, number>} */ ({ queued: 1, running: 2 });
/** @param {Job} job */
const rank = (job) => RANKS[job.state] ?? 3;

/**
 * Take in what the server answered; an event may have overtaken it.
 * @param {Job} job
 */
export function put(job) {
  const known = server.jobs.get(job.id);
  if (!known || rank(job) >= rank(known) || job.attempt > known.attempt) heardOf(job);
}

/**
 * Take in a job as an event has it.
 * @param {Job} job
 */
export function heardOf(job) {
  const before = server.jobs.get(job.id);
  server.jobs.set(job.id, { ...before, ...job, preview: job.preview ?? before?.preview ?? null });
  if (job.mine && before?.state !== job.state) announce(`${job.kind === "draw" ? "The picture" : job.kind === "learn" ? `Learning ${job.request?.name ?? ""}` : "The upload"} ${SAID[/** @type {keyof typeof SAID} */ (job.state)]}`);
  tell("jobs");
}

/** @param {any} data of a progress event */
export function progress(data) {
  const job = server.jobs.get(data.job);
  if (!job) return;
  const grown = (/** @type {any[]} */ curve, /** @type {number | null | undefined} */ value) => (value === undefined || value === null ? curve : [...(curve ?? []), [data.step, value]]);
  server.jobs.set(job.id, { ...job, step: data.step, steps: data.steps, eta_s: data.eta_s, losses: grown(job.losses, data.loss), likenesses: grown(job.likenesses, data.likeness) });
  tell("progress");
}

/** @param {any} data of a preview event */
export function preview(data) {
  const job = server.jobs.get(data.job);
  if (!job) return;
  server.jobs.set(job.id, { ...job, preview: data.url });
  tell("progress");
}

/** @param {Job} job */
export function titleOf(job) {
  if (job.kind === "draw") return job.request?.prompt ?? "a picture";
  return job.kind === "learn" ? `learn ${job.request?.name ?? job.subject ?? ""}` : `push ${job.subject ?? job.request?.name ?? ""}`;
}

/** @param {Job} job */
export function stateLine(job) {
  const left = job.eta_s ? `, ${duration(job.eta_s)} left` : "";
  if (job.state === "queued") return job.position ? `${job.position} before it${job.eta_s ? `, about ${duration(job.eta_s)}` : ""}` : "next in line";
  if (job.state === "running") return job.steps ? `step ${job.step} / ${job.steps}${left}` : "starting";
  if (job.state === "cancelled") return job.steps ? `cancelled at ${job.step} / ${job.steps}` : "cancelled";
  if (job.state === "failed") return job.error?.title ?? "failed";
  return job.kept && job.kept < job.steps ? `done, step ${job.kept} of ${job.steps} is kept` : "done";
}

/** @param {Job} job */
function failure(job) {
  return h("div", { class: "failure" }, h("p", {}, job.error?.title ?? "It failed."),
    job.error?.detail && job.error.detail !== job.error.title ? h("details", {}, h("summary", {}, "Details"), h("pre", {}, job.error.detail)) : null,
    h("button", { type: "button", onclick: () => retry(job) }, "Try again"));
}

/** @param {Job} job */
function results(job) {
  return h("div", { class: "seeds" }, job.results.map((/** @type {string} */ id) => {
    const seed = pictureOf(id)?.seed;
    return h("button", { type: "button", class: "thumb", "aria-label": `Open the picture${seed === undefined ? "" : ` of seed ${seed}`}`, onclick: () => openPicture(id) },
      h("img", { src: thumbUrl(id), alt: "", loading: "lazy" }), seed === undefined ? null : h("span", { class: "badge" }, seed));
  }), job.results.length > 1 ? h("button", { type: "button", class: "link", onclick: () => openPicture(job.results[0], "seeds") }, "Side by side") : null);
}

let card = "";
function renderCard() {
  const job = current();
  const box = $("#now");
  const key = job ? [job.id, job.state, job.attempt, job.results.join()].join() : "";
  if (key !== card) {
    card = key;
    box.hidden = !job;
    if (job) fill(box,
      h("div", { class: "now-head" }, h("span", { class: `dot ${job.state}`, "aria-hidden": "true" }), h("span", { class: "now-line" }), isActive(job)
        ? h("button", { type: "button", class: "small-button", onclick: () => cancel(job) }, "Cancel") : null),
      isActive(job) ? h("progress", { max: 1, value: 0, "aria-label": "Progress of the picture" }) : null,
      job.state === "failed" ? failure(job) : null,
      job.warnings?.length ? h("ul", { class: "warnings" }, job.warnings.map((/** @type {string} */ text) => h("li", {}, text))) : null,
      job.results.length ? results(job) : null);
    backdrop(job);
  }
  if (job) update(box, job);
}

/** What changes with every step.
 * @param {HTMLElement} box
 * @param {Job} job
 */
function update(box, job) {
  $(".now-line", box).textContent = stateLine(job);
  const bar = $("progress", box);
  if (bar && job.steps) [bar.max, bar.value] = [job.steps, job.step];
  $("#make-line").textContent = isActive(job) ? stateLine(job) : "";
  if (isActive(job) && job.preview && $("#backdrop").getAttribute("src") !== job.preview) backdrop(job);
}

let followed = "";
/** The canvas shows this person's newest job: as it forms, and what came of it.
 * @param {Job | undefined} job
 */
function backdrop(job) {
  if (!job) return;
  $("#sheet").classList.toggle("cancelled", job.state === "cancelled");
  $("#sheet-note").textContent = job.state === "cancelled" && job.preview ? stateLine(job) : "";
  if (isActive(job)) {
    followed = job.id;
    if (job.preview) showBackdrop(job.preview, "The picture as it forms");
  } else if (followed === job.id && job.results.length) showBackdrop(fileUrl(job.results.at(-1)), "The finished picture");
}

function renderQueue() {
  const jobs = [...server.jobs.values()].sort((a, b) => (a.created < b.created ? 1 : -1));
  const active = jobs.filter(isActive);
  $("#queue-count").textContent = String(active.length);
  $("#queue-open").setAttribute("aria-label", `Queue: ${active.length} ${active.length === 1 ? "job" : "jobs"}`);
  const rows = [...active.reverse(), ...jobs.filter((job) => !isActive(job)).slice(0, 20)];
  if (!$("#queue").open) return;
  $("#queue-list").replaceChildren(...rows.map((job) => h("li", { class: "job" }, h("span", { class: `dot ${job.state}`, "aria-hidden": "true" }),
    h("span", { class: "job-title" }, titleOf(job)), h("span", { class: "hint" }, job.mine ? stateLine(job) : `${stateLine(job)} (someone else's)`),
    job.mine && isActive(job) ? iconButton("close", `Cancel ${titleOf(job)}`, () => cancel(job)) : null,
    job.mine && (job.state === "failed" || job.state === "cancelled") ? iconButton("redo", `Try ${titleOf(job)} again`, () => retry(job)) : null)));
  $("#queue-empty").hidden = rows.length > 0;
}

function renderMake() {
  const why = obstacle();
  for (const button of [$("#make"), $("#make-small")]) {
    button.disabled = Boolean(why);
    button.title = why || "Ctrl+Enter";
  }
  const label = draft.count > 1 ? `Make ${draft.count}` : "Make";
  $("#make-label").textContent = $("#make-small").textContent = label;
  $("#make-why").textContent = server.info && draft.prompt.trim() ? why : "";
}

export function start() {
  $("#make").addEventListener("click", () => make());
  $("#make-small").addEventListener("click", () => make());
  $("#make").addEventListener("refresh", renderMake);
  $("#queue-open").addEventListener("click", () => {
    openDialog($("#queue"));
    renderQueue();
  });
  on("jobs pictures", () => (renderCard(), renderQueue()));
  on("progress", () => (renderCard(), renderQueue()));
  on("draft info subjects", renderMake);
}
