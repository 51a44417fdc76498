/** One picture, large: its places over it, where attention went, its seeds side by side, two compared. */

import { $, announce, attempt, h, iconButton, openDialog, s, saveFile, toast } from "./dom.js";
import { get } from "./api.js";
import { discard, edit, fileUrl, listed, pictureOf, pictures, putPicture } from "./pictures.js";
import { fromLayout } from "./layouts.js";
import { backToFront, boundsOf, COLOURS, inkOn } from "./shapes.js";
import { load } from "./request.js";
import { showBackdrop, textWidth } from "./canvas.js";
import { change } from "./store.js";
import { maskCanvas, tinted } from "./brush.js";

const state = { id: "", mode: /** @type {"one" | "seeds" | "compare"} */ ("one"), other: "", places: true, heat: "" };

/**
 * @param {string} id
 * @param {"one" | "seeds" | "compare"} [mode]
 * @param {string} [other] to compare with
 */
export async function openPicture(id, mode = "one", other = "") {
  if (!pictureOf(id)) await attempt(async () => putPicture(await get(`/v1/pictures/${id}`)));
  if (!pictureOf(id)) return;
  Object.assign(state, { id, mode, other, heat: "" });
  render();
  if (!$("#viewer").open) openDialog($("#viewer"));
}

/** The places of a picture as SVG, in the colours of its subjects.
 * @param {any} picture
 * @param {boolean} large
 */
async function overlay(picture, large) {
  const [width, height] = [1000, (1000 * picture.height) / picture.width];
  const places = await fromLayout(picture.layout);
  const drawn = await Promise.all(backToFront(places).flatMap((place) => {
    const colour = COLOURS[Math.max(0, picture.subjects.indexOf(place.subject)) % COLOURS.length];
    return place.shapes.filter((shape) => !("rest" in shape)).map(async (shape) => {
      const [x0, y0, x1, y1] = boundsOf(shape);
      const size = large ? 19 : 38;
      const wide = (textWidth(place.subject) / 12 + 0.8) * size;
      const outline = "polygon" in shape ? s("polygon", { points: shape.polygon.map(([x, y]) => `${x * width},${y * height}`).join(" ") })
        : "mask" in shape ? s("image", { href: tinted(await maskCanvas(shape.mask), colour), width, height, opacity: 0.45, preserveAspectRatio: "none" })
          : s("rect", { x: x0 * width, y: y0 * height, width: (x1 - x0) * width, height: (y1 - y0) * height });
      const group = s("g", { class: "seen" }, outline, s("rect", { class: "plate", x: x0 * width, y: y0 * height, width: wide, height: size * 1.5, rx: size / 4 }),
        s("text", { x: x0 * width + size * 0.4, y: y0 * height + size * 1.1, "font-size": size, fill: inkOn(colour) }, place.subject));
      group.style.setProperty("--colour", colour);
      return group;
    });
  }));
  return s("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...drawn);
}

/** @param {any} picture @param {boolean} large */
function figure(picture, large) {
  const heat = large && state.heat && h("img", { class: "heat", src: `/v1/pictures/${picture.id}/attention/${encodeURIComponent(state.heat)}`, alt: `Where attention went for ${state.heat}` });
  const image = h("img", { src: fileUrl(picture.id), alt: `${picture.prompt}, seed ${picture.seed}`, width: picture.width, height: picture.height });
  const frame = h("div", { class: `frame${heat ? " heated" : ""}` }, image, heat);
  if (state.places && picture.layout) void overlay(picture, large).then((drawn) => frame.append(drawn));
  return h("figure", { class: large ? "large" : "" }, frame, large ? null : h("figcaption", {}, `seed ${picture.seed}`,
    h("button", { type: "button", class: "link", onclick: () => openPicture(picture.id) }, "open")));
}

/** All pictures of one job. */
const siblings = () => [...pictures.values()].filter((picture) => picture.job === pictureOf(state.id)?.job && !picture.deleted).sort((a, b) => a.seed - b.seed);

/** @param {any} picture */
function attention(picture) {
  if (!picture.attention?.length) return null;
  const line = picture.attention.map((/** @type {any} */ each) => h("li", {},
    h("button", { type: "button", "aria-pressed": state.heat === each.name, onclick: () => {
      state.heat = state.heat === each.name ? "" : each.name;
      render();
    } }, each.name), each.inside === null || each.inside === undefined ? null : h("span", { class: "hint" }, ` ${Math.round(each.inside * 100)} % of it inside its place`)));
  return h("section", {}, h("h3", {}, "Where attention went"), h("ul", { class: "attention" }, line));
}

/** @param {any} picture */
function facts(picture) {
  const note = h("textarea", { id: "note", rows: 2, maxlength: 2000, value: picture.note ?? "", onchange: () => edit(picture.id, { note: note.value }) });
  const many = siblings().length > 1;
  return h("div", { class: "facts" },
    h("p", { class: "said" }, picture.prompt),
    h("p", { class: "hint" }, `seed ${picture.seed}, ${picture.width} x ${picture.height}`),
    h("div", { class: "row wrap" },
      h("button", { type: "button", class: "primary", onclick: () => reopen(picture, true), title: "A" }, "Re-open"),
      h("button", { type: "button", onclick: () => reopen(picture, false), title: "R" }, "Remix"),
      iconButton(picture.starred ? "star" : "star-empty", picture.starred ? "Unstar" : "Star", () => star(picture), { "aria-pressed": Boolean(picture.starred), class: "square" }),
      iconButton("trash", "Delete", () => drop(picture), { class: "square" })),
    h("div", { class: "row wrap" },
      h("label", { class: "check" }, h("input", { type: "checkbox", id: "over", checked: state.places, onchange: () => ((state.places = !state.places), render()) }), "places over it"),
      many ? h("button", { type: "button", class: "link", onclick: () => openPicture(picture.id, state.mode === "seeds" ? "one" : "seeds") }, state.mode === "seeds" ? "One" : "Seeds side by side") : null),
    state.mode === "one" ? attention(picture) : null,
    h("label", { for: "note" }, "Note"), note,
    h("div", { class: "row wrap" },
      h("a", { class: "button", href: fileUrl(picture.id), download: `${picture.id}.png` }, "Download PNG"),
      picture.layout ? h("button", { type: "button", onclick: () => saveFile(`${picture.id}.json`, new Blob([JSON.stringify(picture.layout, null, 2)], { type: "application/json" })) }, "Layout JSON") : null));
}

function render() {
  const picture = pictureOf(state.id);
  if (!picture) return;
  const shown = state.mode === "seeds" ? siblings() : state.mode === "compare" ? [picture, pictureOf(state.other)].filter(Boolean) : [picture];
  const focused = document.activeElement?.id || document.activeElement?.getAttribute("aria-label") || document.activeElement?.textContent;
  const within = $("#viewer").contains(document.activeElement);
  $("#viewer-pictures").className = `viewer-pictures ${state.mode}`;
  $("#viewer-pictures").replaceChildren(...shown.map((each) => figure(each, state.mode === "one")));
  $("#viewer-facts").replaceChildren(facts(picture));
  $("#viewer-title").textContent = { one: "Picture", seeds: "Seeds side by side", compare: "Two compared" }[state.mode];
  const order = listed();
  $("#viewer-back").disabled = order[0]?.id === picture.id;
  $("#viewer-on").disabled = order.at(-1)?.id === picture.id;
  if (within) [...$("#viewer").querySelectorAll("button, input, textarea, a")].find((each) => (each.id || each.getAttribute("aria-label") || each.textContent) === focused)?.focus();
}

/** @param {any} picture */
async function star(picture) {
  await edit(picture.id, { starred: !picture.starred });
  announce(picture.starred ? "Unstarred" : "Starred");
  render();
}

/** @param {any} picture */
async function drop(picture) {
  step(1) || step(-1) || $("#viewer").close();
  await discard([picture.id]);
}

/** @param {number} by @returns {boolean} whether there was one */
function step(by) {
  const order = listed();
  const to = order[order.findIndex((picture) => picture.id === state.id) + by];
  if (!to) return false;
  void openPicture(to.id);
  return true;
}

/**
 * Put all that made a picture into the draft; a remix has another seed.
 * @param {any} picture
 * @param {boolean} seeds
 */
async function reopen(picture, seeds) {
  await attempt(async () => {
    const request = await get(`/v1/pictures/${picture.id}/request`);
    await load({ ...request, seeds: [picture.seed] }, { seeds });
    if (!seeds) change({ seed: (picture.seed + 1 + Math.floor(Math.random() * 1e6)) % 2 ** 32 }, { undoable: false });
    if (seeds) showBackdrop(fileUrl(picture.id), "The picture that was opened again");
    $("#viewer").close();
    toast(seeds ? "Everything is as it was: Make draws the same picture." : "All but the seed is as it was.");
  });
}

export function start() {
  $("#viewer-back").addEventListener("click", () => step(-1));
  $("#viewer-on").addEventListener("click", () => step(1));
  $("#viewer").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const target = /** @type {Element} */ (event.target);
    const picture = pictureOf(state.id);
    if (!picture || target.matches("textarea") || event.ctrlKey || event.altKey) return;
    /** @type {Record<string, () => void>} */
    const keys = { a: () => reopen(picture, true), r: () => reopen(picture, false), s: () => star(picture), Delete: () => drop(picture),
      i: () => ((state.places = !state.places), render()), ArrowLeft: () => step(-1), ArrowRight: () => step(1) };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}
