/** The page begins: every part is started once, then the server is listened to. */

import { $, announce, toast } from "./dom.js";
import { get, listen } from "./api.js";
import * as bin from "./bin.js";
import * as canvas from "./canvas.js";
import * as files from "./files.js";
import * as gallery from "./gallery.js";
import * as gestures from "./gestures.js";
import * as jobs from "./jobs.js";
import * as keys from "./keys.js";
import * as places from "./places.js";
import * as prompt from "./prompt.js";
import { more, putPicture } from "./pictures.js";
import { adoptDefaults } from "./request.js";
import * as settings from "./settings.js";
import { on, server, tell } from "./store.js";
import * as subjects from "./subjects.js";
import * as teach from "./teach.js";
import * as viewer from "./viewer.js";

async function loadInfo() {
  try {
    server.info = await get("/v1/info");
    adoptDefaults();
    tell("info", "draft");
  } catch (error) {
    const { status, message } = /** @type {any} */ (error);
    if (status === 401 || status === 403) toast(message, { bad: true });
  }
}

/** After a connection is there, all that may have changed meanwhile. */
async function catchUp() {
  await loadInfo();
  await Promise.all([subjects.refresh(), more({ anew: true })]);
}

/** @type {Record<string, (data: any) => void>} */
const HEARD = {
  snapshot: (data) => {
    const kept = server.jobs;
    server.jobs = new Map(data.jobs.map((/** @type {any} */ job) => [job.id, { ...job, preview: job.preview ?? kept.get(job.id)?.preview ?? null }]));
    server.worker = data.info?.worker ?? "ready";
    tell("jobs", "connection");
  },
  state: jobs.heardOf,
  progress: jobs.progress,
  preview: jobs.preview,
  result: (data) => {
    putPicture(data.picture);
    const job = server.jobs.get(data.job);
    if (job && !job.results.includes(data.picture.id)) server.jobs.set(data.job, { ...job, results: [...job.results, data.picture.id] });
  },
  subjects: () => void subjects.refresh(),
  worker: (data) => {
    server.worker = data.state;
    if (data.state === "ready" && !server.info?.model) void catchUp();
    tell("connection");
  },
};

function renderConnection() {
  const banner = $("#banner");
  const text = !server.connected ? "The server does not answer. Your draft is kept; this page goes on when it is back."
    : server.worker === "restarting" ? "The model is being started again. Jobs go on where they were." : server.worker === "starting" ? "The model is being loaded." : "";
  banner.hidden = !text;
  banner.classList.toggle("bad", !server.connected);
  if ($("#banner-text").textContent !== text) {
    $("#banner-text").textContent = text;
    if (text) announce(text);
  }
  $("#model").textContent = server.info?.model?.name ?? "";
}

function startTheme() {
  const root = document.documentElement;
  $("#theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("cones2.theme", root.dataset.theme);
    } catch {
      // Without storage the choice lives as long as the page.
    }
    announce(`${root.dataset.theme} theme`);
  });
}

for (const part of [canvas, gestures, keys, settings, prompt, places, subjects, jobs, gallery, viewer, teach, bin, files]) part.start();
startTheme();
for (const button of document.querySelectorAll("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog")?.close());
on("connection info", renderConnection);
tell("draft", "ui", "subjects", "jobs", "connection");
void catchUp();
let wasConnected = true;
listen((kind, data) => HEARD[kind](data), (connected) => {
  server.connected = connected;
  if (connected && !wasConnected) void catchUp();
  wasConnected = connected;
  tell("connection");
});
