/** What a picture is asked with: the draft as the server reads it, and a request put back into the draft. */

import { mentioned } from "./cast.js";
import { fromLayout, toLayout } from "./layouts.js";
import { change, draft, server, setUi } from "./store.js";

/** The request of the draft: subjects and places that the prompt mentions. */
export function requestOf() {
  const names = mentioned(draft.prompt);
  const subjects = draft.members.filter((member) => names.includes(member.name)).map(({ colour, ...member }) => member);
  const places = draft.places.filter((place) => names.includes(place.subject));
  return {
    prompt: draft.prompt, negative_prompt: draft.negative_prompt, subjects, layout: toLayout(places),
    seeds: Array.from({ length: draft.count }, (_, at) => draft.seed + at), num_inference_steps: draft.steps,
    guidance_scale: draft.guidance_scale, layout_scale: draft.layout_scale, width: draft.width, height: draft.height,
    preset: draft.preset, scheduler: draft.scheduler, measure_attention: draft.measure_attention,
  };
}

/**
 * Put a request, or a part of one, into the draft; it can be undone.
 * @param {any} request
 * @param {{seeds?: boolean}} [how] whether the seeds come too
 */
export async function load(request, { seeds = true } = {}) {
  const places = request.layout ? await fromLayout(request.layout) : "layout" in request ? [] : draft.places;
  const given = (request.subjects ?? []).map((/** @type {any} */ subject, /** @type {number} */ at) => ({
    source: "library", class_word: "", sha256: null, strength: 1, negative: "", ...subject, colour: at }));
  const members = request.subjects ? given : draft.members;
  const known = new Set(members.map((/** @type {any} */ member) => member.name));
  const others = [...new Set(places.map((place) => place.subject))].filter((name) => !known.has(name)).map((name, at) => ({
    name, source: /** @type {const} */ ("word"), class_word: name.replaceAll("_", " ").trim(), sha256: null, strength: 1,
    negative: "", colour: members.length + at }));
  /** @type {Record<string, any>} */
  const found = { places, members: [...members, ...others] };
  const same = ["prompt", "negative_prompt", "guidance_scale", "layout_scale", "width", "height", "preset", "scheduler", "measure_attention"];
  for (const key of same) if (key in request && request[key] !== undefined) found[key] = request[key];
  if (request.num_inference_steps) found.steps = request.num_inference_steps;
  if (seeds && request.seeds?.length) Object.assign(found, { seed: request.seeds[0], count: contiguous(request.seeds) });
  change(found);
  setUi({ selected: null, active: found.members[0]?.name ?? null });
}

/** How many seeds follow one another from the first.
 * @param {number[]} seeds
 */
function contiguous(seeds) {
  const end = seeds.findIndex((seed, at) => seed !== seeds[0] + at);
  return end < 0 ? seeds.length : end;
}

/** What the model suits, wherever the draft has nothing yet. */
export function adoptDefaults() {
  const { defaults } = server.info;
  if (draft.width || !defaults.width) return; // a draft that has its numbers, or a model that is still being opened
  change({ width: defaults.width, height: defaults.height, steps: defaults.num_inference_steps,
    guidance_scale: defaults.guidance_scale, layout_scale: defaults.layout_scale, preset: defaults.preset,
    scheduler: defaults.scheduler ?? null }, { undoable: false });
}
