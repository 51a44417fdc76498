/** The bin: what was deleted, to be taken back or to go for good. */

import { $, announce, attempt, h, iconButton, openDialog, toast } from "./dom.js";
import { get, post, remove } from "./api.js";
import { putPicture, thumbUrl } from "./pictures.js";
import { server } from "./store.js";
import { refresh } from "./subjects.js";

const MOST = 200;
/** Whether the next press on the button empties it: the first one asks. */
let asked = false;

/** One thing in the bin.
 * @param {any} shown
 * @param {string} name
 * @param {string} hint
 * @param {() => Promise<any>} restore
 */
function row(shown, name, hint, restore) {
  return h("li", { class: "job" }, shown, h("span", { class: "job-title" }, name), h("span", { class: "hint" }, hint),
    iconButton("undo", `Take back ${name}`, () => attempt(async () => {
      await restore();
      announce(`${name} is back`);
      await render();
    })));
}

async function render() {
  const [bin, gone] = await Promise.all([get("/v1/subjects/bin"), get(`/v1/pictures?deleted=true&limit=${MOST}`)]);
  const subjects = bin.subjects.map((/** @type {any} */ each) => row(h("span", { class: "face", "aria-hidden": "true" }, each.name.slice(0, 1).toUpperCase()),
    each.name, `${each.class_word ?? "subject"}, ${each.deleted.slice(0, 10)}`, async () => {
      await post(`/v1/subjects/bin/${each.id}/restore`);
      await refresh();
    }));
  const pictures = gone.pictures.map((/** @type {any} */ each) => row(h("img", { class: "bin-thumb", src: thumbUrl(each.id), alt: "", width: 40, height: 40, loading: "lazy" }),
    each.prompt, `seed ${each.seed}${each.starred ? ", starred: it stays" : ""}`, async () => putPicture(await post(`/v1/pictures/${each.id}/restore`))));
  $("#bin-list").replaceChildren(...subjects, ...pictures);
  $("#bin-more").hidden = !gone.next;
  const some = subjects.length + gone.pictures.filter((/** @type {any} */ each) => !each.starred).length;
  $("#bin-empty").hidden = subjects.length + pictures.length > 0;
  $("#bin-clear").disabled = some === 0 && !gone.next;
  ask(false);
}

/** @param {boolean} really */
function ask(really) {
  asked = really;
  $("#bin-clear").textContent = really ? "Delete all of it for good" : "Empty the bin";
}

async function clear() {
  if (!asked) {
    ask(true);
    announce("Press again to delete all of it for good");
    return;
  }
  await attempt(async () => {
    const gone = await remove("/v1/bin");
    await render();
    toast(`${gone.pictures} ${gone.pictures === 1 ? "picture" : "pictures"} and ${gone.subjects} ${gone.subjects === 1 ? "subject" : "subjects"} are gone for good.`);
  });
}

export function start() {
  $("#bin-open").addEventListener("click", () => {
    $("#bin-days").textContent = String(server.info?.limits.bin_days ?? 30);
    openDialog($("#bin"));
    void attempt(render);
  });
  $("#bin-clear").addEventListener("click", clear);
}
