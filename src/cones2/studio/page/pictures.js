/** The pictures that the server has told of, the newest first. */

import { attempt, toast } from "./dom.js";
import { get, patch, post, remove } from "./api.js";
import { tell } from "./store.js";

/** @typedef {any} Picture */

/** @type {Map<string, Picture>} */
export const pictures = new Map();
export const filter = { subject: "", starred: false };
/** @type {string | null | undefined} undefined before the first page, null after the last */
let next;
let loading = false;

/** @param {string} id */
export const pictureOf = (id) => pictures.get(id);
/** @param {string} id */
export const thumbUrl = (id) => `/v1/pictures/${id}/thumb`;
/** @param {string} id */
export const fileUrl = (id) => `/v1/pictures/${id}/file`;

/** Those that pass the filter. */
export const listed = () => [...pictures.values()].filter((picture) => !picture.deleted && (!filter.starred || picture.starred) &&
  (!filter.subject || picture.subjects.includes(filter.subject))).sort((a, b) => (a.created < b.created ? 1 : a.created > b.created ? -1 : 0));

/** @param {Picture} picture */
export function putPicture(picture) {
  pictures.set(picture.id, picture);
  tell("pictures");
}

/** Ask for one page more.
 * @param {{anew?: boolean}} [how]
 */
export async function more({ anew = false } = {}) {
  if (loading || (next === null && !anew)) return;
  loading = true;
  const query = new URLSearchParams({ limit: "60" });
  if (next && !anew) query.set("cursor", next);
  if (filter.subject) query.set("subject", filter.subject);
  if (filter.starred) query.set("starred", "true");
  try {
    const page = await get(`/v1/pictures?${query}`);
    next = page.next;
    for (const picture of page.pictures) pictures.set(picture.id, picture);
    tell("pictures");
  } catch {
    // The banner tells that the server is gone; the next scroll asks again.
  }
  loading = false;
}

/** @param {string} id @param {{starred?: boolean, note?: string}} changes */
export const edit = (id, changes) => attempt(async () => putPicture(await patch(`/v1/pictures/${id}`, changes)));

/** To the bin, from where they can come back.
 * @param {string[]} ids
 */
export async function discard(ids) {
  await attempt(async () => {
    await Promise.all(ids.map((id) => remove(`/v1/pictures/${id}`)));
    for (const id of ids) pictures.set(id, { ...pictures.get(id), deleted: true });
    tell("pictures");
    toast(ids.length === 1 ? "The picture is deleted." : `${ids.length} pictures are deleted.`, { action: "Undo", run: () => void restore(ids) });
  });
}

/** @param {string[]} ids */
async function restore(ids) {
  await attempt(async () => {
    for (const id of ids) putPicture(await post(`/v1/pictures/${id}/restore`));
  });
}
