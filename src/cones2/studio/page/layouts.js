/** Layouts as others read them: the library's own JSON, and the table of boxes that other tools share. */

import { boundsOf, round } from "./shapes.js";
import { paintedBounds } from "./brush.js";

/** @typedef {import("./shapes.js").Place} Place */
/** @typedef {import("./shapes.js").Shape} Shape */

let made = 0;
/** A new id for a place; it lives in this browser only. */
export const newId = () => `place-${Date.now().toString(36)}-${(made += 1)}`;

/**
 * The library's layout JSON; null where nothing is placed.
 * @param {Place[]} places
 */
export function toLayout(places) {
  const regions = places.map((place) => [place.subject, {
    shapes: place.shapes.map(written), z: place.z, weight: place.weight, feather: place.feather,
  }]);
  return regions.length ? { version: 1, regions: Object.fromEntries(regions) } : null;
}

/** @param {Shape} shape */
function written(shape) {
  if ("box" in shape) return shape.box;
  if ("polygon" in shape) return { polygon: shape.polygon };
  if ("mask" in shape) return { mask: { png: shape.mask } };
  return "rest";
}

/**
 * Places from the library's layout JSON, in any of its short forms, the foremost first.
 * @param {any} layout
 * @returns {Promise<Place[]>}
 */
export async function fromLayout(layout) {
  const places = [];
  for (const [subject, value] of Object.entries(layout?.regions ?? {})) {
    const region = /** @type {any} */ (value);
    const isRegion = region && typeof region === "object" && Array.isArray(region.shapes);
    const raw = isRegion ? region.shapes : isShape(region) ? [region] : region;
    const shapes = (await Promise.all((Array.isArray(raw) ? raw : []).map(read))).filter((shape) => shape !== null);
    if (!shapes.length) continue;
    const { z = 0, weight = 1, feather = 0 } = isRegion ? region : {};
    places.push({ id: newId(), subject, shapes: /** @type {Shape[]} */ (shapes), z, weight, feather });
  }
  return places.sort((a, b) => b.z - a.z);
}

/** @param {any} value */
const isBox = (value) => Array.isArray(value) && value.length === 4 && value.every((side) => typeof side === "number");
/** @param {any} value */
const isShape = (value) => isBox(value) || value === "rest" || (value !== null && !Array.isArray(value) && typeof value === "object");

/**
 * @param {any} value
 * @returns {Promise<Shape | null>}
 */
async function read(value) {
  if (isBox(value)) return { box: value };
  if (value === "rest") return { rest: true };
  if (Array.isArray(value?.polygon)) return { polygon: value.polygon };
  if (value?.mask?.png) return { mask: value.mask.png, bounds: await paintedBounds(value.mask.png) };
  return null;
}

/**
 * Rows of `[top, left, bottom, right]` in thousandths, as FLUX.3, Ideogram 4 and InvokeAI share them.
 * @param {Place[]} places
 * @param {(name: string) => string} wordOf a subject's class word
 */
export function toTable(places, wordOf) {
  return places.filter((place) => !place.shapes.some((shape) => "rest" in shape)).map((place) => {
    const all = place.shapes.map(boundsOf);
    const [x0, y0] = [0, 1].map((side) => Math.min(...all.map((box) => box[side])));
    const [x1, y1] = [2, 3].map((side) => Math.max(...all.map((box) => box[side])));
    return { id: place.subject, bbox: [y0, x0, y1, x1].map((side) => Math.round(side * 1000)), desc: wordOf(place.subject) };
  });
}

/**
 * Places from a box table; null where it is none.
 * @param {any} data
 * @returns {{place: Place, word: string}[] | null}
 */
export function fromTable(data) {
  const rows = Array.isArray(data) ? data : data?.boxes ?? data?.elements;
  if (!Array.isArray(rows) || !rows.length) return null;
  /** @type {{place: Place, word: string}[]} */
  const found = [];
  for (const [index, row] of rows.entries()) {
    const sides = row?.bbox ?? row?.box_2d ?? row?.tgt_bbox;
    if (!isBox(sides) || sides.some((/** @type {number} */ side) => side < 0 || side > 1000)) return null;
    const [top, left, bottom, right] = sides.map((/** @type {number} */ side) => round(side / 1000));
    if (top >= bottom || left >= right) return null;
    const word = String(row.desc ?? row.label ?? row.id ?? "thing").slice(0, 60);
    const subject = nameFrom(String(row.id ?? row.label ?? `thing_${index + 1}`));
    found.push({ word, place: { id: newId(), subject, shapes: [{ box: [left, top, right, bottom] }],
      z: rows.length - 1 - index, weight: 1, feather: 0 } });
  }
  return found;
}

/** A text as a subject's name: letters, digits and underscores, no digit first.
 * @param {string} text
 */
export function nameFrom(text) {
  const near = text.trim().replace(/[^A-Za-z0-9_]+/g, "_").replace(/^_+|_+$/g, "").slice(0, 64);
  return /^[0-9]/.test(near) || !near ? `_${near}`.slice(0, 64) : near;
}
