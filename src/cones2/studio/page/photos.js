/** The photos of a teaching: what is doubtful about each, and what is cut off. They stay here until they are sent. */

import { $, h, iconButton, openDialog, s } from "./dom.js";
import { call, form } from "./api.js";
import { clamp, resizedBounds, movedBounds, HANDLES } from "./shapes.js";

/**
 * @typedef {{file: File, url: string, ok: boolean | null, doubts: string[], preview: string | null,
 *   crop: import("./shapes.js").Box | null}} Photo ok is null until the server has looked
 */

/** @type {Photo[]} */
export let photos = [];
/** @type {string[]} doubts about all of them together */
export let doubts = [];
let tell = () => {};

/** @param {() => void} run called whenever they change */
export const onPhotos = (run) => (tell = run);

/** @param {File[]} files @param {number} most */
export function addPhotos(files, most) {
  const fresh = files.filter((file) => !photos.some((photo) => photo.file.name === file.name && photo.file.size === file.size));
  photos = [...photos, ...fresh.map((file) => ({ file, url: URL.createObjectURL(file), ok: null, doubts: [], preview: null, crop: null }))];
  const over = photos.splice(most);
  for (const photo of over) URL.revokeObjectURL(photo.url);
  tell();
}

/** @param {Photo} photo */
export function dropPhoto(photo) {
  URL.revokeObjectURL(photo.url);
  photos = photos.filter((each) => each !== photo);
  tell();
}

export function clearPhotos() {
  for (const photo of photos) URL.revokeObjectURL(photo.url);
  [photos, doubts] = [[], []];
  tell();
}

let round = 0;
/** Ask the server to look at all photos.
 * @param {string} classWord
 */
export async function lookAt(classWord) {
  const mine = (round += 1);
  const asked = photos;
  if (!asked.length) {
    doubts = [];
    tell();
    return;
  }
  const answer = await call("POST", "/v1/photos/check", form({ photos: asked.map((photo) => photo.file), class_word: classWord }));
  if (mine !== round) return;
  answer.photos.forEach((/** @type {any} */ found, /** @type {number} */ at) => {
    Object.assign(asked[at], { ok: found.ok, doubts: found.doubts, preview: found.preview });
  });
  doubts = answer.doubts;
  tell();
}

/** @param {Photo} photo @param {number} at */
export function card(photo, at) {
  const image = h("img", { src: photo.preview ?? photo.url, alt: `Photo ${at + 1}, ${photo.file.name}` });
  const bad = photo.ok === false;
  const text = photo.ok === null ? "looking..." : photo.doubts.join(" ") || "fine";
  const frame = h("div", { class: "photo-frame" }, image, photo.crop ? cropShade(photo.crop) : null);
  return h("li", { class: `photo${bad ? " bad" : photo.doubts.length ? " doubtful" : ""}` }, frame,
    h("p", { class: "photo-doubt" }, h("b", {}, photo.file.name), " ", text),
    h("div", { class: "row" }, bad ? null : iconButton("crop", `Crop photo ${at + 1}`, () => openCrop(photo)),
      iconButton("trash", `Leave out photo ${at + 1}`, () => dropPhoto(photo))));
}

/** @param {import("./shapes.js").Box} box */
function cropShade([x0, y0, x1, y1]) {
  return s("svg", { class: "crop-shade", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("path", { d: `M0 0H1V1H0Z M${x0} ${y0}V${y1}H${x1}V${y0}Z` }));
}

/** Cut: drag the frame or its handles, or type the four numbers.
 * @param {Photo} photo
 */
function openCrop(photo) {
  let box = photo.crop ?? /** @type {import("./shapes.js").Box} */ ([0, 0, 1, 1]);
  const shade = s("path", {});
  const frame = s("rect", { class: "crop-frame", "data-handle": "" });
  const handles = HANDLES.map((handle) => s("rect", { class: `handle ${handle}`, "data-handle": handle, width: 14, height: 14, rx: 3 }));
  const svg = s("svg", { class: "crop-over", "aria-hidden": "true" }, shade, frame, ...handles);
  const image = h("img", { src: photo.preview ?? photo.url, alt: `Photo ${photo.file.name}`, draggable: "false" });
  const inputs = ["left", "top", "right", "bottom"].map((side, at) => {
    const field = h("input", { type: "number", min: 0, max: 100, step: 1, onchange: () => {
      const value = clamp(Number(field.value) / 100);
      const next = /** @type {import("./shapes.js").Box} */ (box.map((each, index) => (index === at ? value : each)));
      if (next[2] - next[0] >= 0.05 && next[3] - next[1] >= 0.05) box = next;
      show();
    } });
    return h("label", { class: "mini" }, h("span", {}, side), field);
  });
  const show = () => {
    const { clientWidth: width, clientHeight: height } = image;
    const [x0, y0, x1, y1] = box.map((side, at) => side * (at % 2 ? height : width));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    shade.setAttribute("d", `M0 0H${width}V${height}H0Z M${x0} ${y0}V${y1}H${x1}V${y0}Z`);
    for (const [name, value] of Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 })) frame.setAttribute(name, String(value));
    HANDLES.forEach((handle, at) => {
      handles[at].setAttribute("x", String((handle.includes("w") ? x0 : handle.includes("e") ? x1 : (x0 + x1) / 2) - 7));
      handles[at].setAttribute("y", String((handle.includes("n") ? y0 : handle.includes("s") ? y1 : (y0 + y1) / 2) - 7));
    });
    inputs.forEach((label, at) => ($("input", label).value = String(Math.round(box[at] * 100))));
  };
  svg.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    const { handle } = /** @type {SVGElement} */ (event.target).dataset;
    if (handle === undefined) return;
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    const [from, start] = [box, [event.clientX, event.clientY]];
    const move = (/** @type {PointerEvent} */ now) => {
      const [dx, dy] = [(now.clientX - start[0]) / image.clientWidth, (now.clientY - start[1]) / image.clientHeight];
      box = handle ? resizedBounds(from, handle, dx, dy) : movedBounds(from, dx, dy);
      show();
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerup", () => svg.removeEventListener("pointermove", move), { once: true });
  });
  const close = (/** @type {boolean} */ keep) => {
    if (keep) photo.crop = box.every((side, at) => side === [0, 0, 1, 1][at]) ? null : box;
    dialog.close();
    tell();
  };
  const dialog = h("dialog", { class: "crop", "aria-labelledby": "crop-title", onclose: () => dialog.remove() },
    h("h2", { id: "crop-title" }, "Crop"), h("p", { class: "hint" }, "Keep the subject, with a little of what is around it."),
    h("div", { class: "crop-stage" }, image, svg), h("div", { class: "numbers" }, inputs),
    h("div", { class: "row end" }, h("button", { type: "button", onclick: () => ((box = [0, 0, 1, 1]), show()) }, "Whole photo"),
      h("button", { type: "button", class: "primary", onclick: () => close(true) }, "Keep")));
  document.body.append(dialog);
  openDialog(dialog);
  image.decode().then(show, show);
}
