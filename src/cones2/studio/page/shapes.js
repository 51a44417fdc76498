/**
 * What places are made of, and what gestures do to them. Pure functions; every number is a fraction of the picture.
 *
 * @typedef {[number, number, number, number]} Box xmin, ymin, xmax, ymax
 * @typedef {{box: Box} | {polygon: [number, number][]} | {mask: string, bounds: Box} | {rest: true}} Shape
 *   a mask is a PNG in base64, stretched over the picture; its bounds are those of what is painted
 * @typedef {{id: string, subject: string, shapes: Shape[], z: number, weight: number, feather: number}} Place
 */

export const SMALLEST = 0.02;
export const GRID = 0.05;
export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
/** Okabe and Ito's colours, as the library draws layouts; told apart also by the colour-blind. */
export const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442"];

/** @param {number} value */
export const round = (value) => Math.round(value * 10000) / 10000;
/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
/**
 * @param {number} value
 * @param {boolean} on
 */
export const snapped = (value, on) => (on ? Math.round(value / GRID) * GRID : value);
/** @param {number} value */
export const percent = (value) => Math.round(value * 1000) / 10;

/**
 * @param {Shape} shape
 * @returns {"box" | "polygon" | "mask" | "rest"}
 */
export const kindOf = (shape) => /** @type {any} */ (Object.keys(shape)[0]);

/**
 * @param {Shape} shape
 * @returns {Box}
 */
export function boundsOf(shape) {
  if ("box" in shape) return shape.box;
  if ("mask" in shape) return shape.bounds;
  if ("rest" in shape) return [0, 0, 1, 1];
  const xs = shape.polygon.map(([x]) => x);
  const ys = shape.polygon.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/**
 * The box between two corners, in the picture and not too small.
 * @param {number} x0
 * @param {number} y0
 * @param {number} x1
 * @param {number} y1
 * @returns {Box}
 */
export function boxBetween(x0, y0, x1, y1) {
  const [left, right] = spread(clamp(Math.min(x0, x1)), clamp(Math.max(x0, x1)));
  const [top, bottom] = spread(clamp(Math.min(y0, y1)), clamp(Math.max(y0, y1)));
  return [round(left), round(top), round(right), round(bottom)];
}

/**
 * @param {number} low
 * @param {number} high
 * @returns {[number, number]}
 */
function spread(low, high) {
  if (high - low >= SMALLEST) return [low, high];
  const start = Math.min(low, 1 - SMALLEST);
  return [start, start + SMALLEST];
}

/**
 * Bounds moved by a way, and held within the picture.
 * @param {Box} bounds
 * @param {number} dx
 * @param {number} dy
 * @param {boolean} [snap]
 * @returns {Box}
 */
export function movedBounds([x0, y0, x1, y1], dx, dy, snap = false) {
  const left = clamp(snapped(x0 + dx, snap), 0, 1 - (x1 - x0));
  const top = clamp(snapped(y0 + dy, snap), 0, 1 - (y1 - y0));
  return [round(left), round(top), round(Math.min(1, left + x1 - x0)), round(Math.min(1, top + y1 - y0))];
}

/**
 * Bounds after one of eight handles was pulled; sides neither cross nor leave the picture.
 * @param {Box} bounds
 * @param {string} handle such as "nw"
 * @param {number} dx
 * @param {number} dy
 * @param {boolean} [snap]
 * @returns {Box}
 */
export function resizedBounds([x0, y0, x1, y1], handle, dx, dy, snap = false) {
  if (handle.includes("w")) x0 = clamp(snapped(x0 + dx, snap), 0, x1 - SMALLEST);
  if (handle.includes("e")) x1 = clamp(snapped(x1 + dx, snap), x0 + SMALLEST, 1);
  if (handle.includes("n")) y0 = clamp(snapped(y0 + dy, snap), 0, y1 - SMALLEST);
  if (handle.includes("s")) y1 = clamp(snapped(y1 + dy, snap), y0 + SMALLEST, 1);
  return [round(x0), round(y0), round(x1), round(y1)];
}

/**
 * A box or polygon stretched from its bounds to others.
 * @param {Shape} shape
 * @param {Box} to
 * @returns {Shape}
 */
export function fitted(shape, to) {
  if ("box" in shape) return { box: to };
  if (!("polygon" in shape)) return shape;
  const [x0, y0, x1, y1] = boundsOf(shape);
  const across = (to[2] - to[0]) / (x1 - x0 || 1);
  const down = (to[3] - to[1]) / (y1 - y0 || 1);
  return { polygon: shape.polygon.map(([x, y]) =>
    [round(clamp(to[0] + (x - x0) * across)), round(clamp(to[1] + (y - y0) * down))]) };
}

/**
 * Boxes side by side on one ground line, from the left.
 * @param {number} count
 * @returns {Box[]}
 */
export function rowOfBoxes(count) {
  const gap = 0.05;
  const width = Math.min(0.42, (1 - gap * (count + 1)) / count);
  const start = (1 - count * width - (count - 1) * gap) / 2;
  return Array.from({ length: count }, (_, at) => {
    const left = start + at * (width + gap);
    return boxBetween(left, 0.9 - width * 1.1, left + width, 0.9);
  });
}

/**
 * Where a new subject goes by itself: in the widest gap between the others, on their ground line.
 * @param {Place[]} places
 * @returns {Box}
 */
export function boxInGap(places) {
  const taken = places.flatMap((place) => place.shapes.map(boundsOf)).sort((a, b) => a[0] - b[0]);
  let [from, to, at] = [0, 0, 0];
  for (const [x0, , x1] of [...taken, [1, 0, 1, 0]]) {
    if (x0 - at > to - from) [from, to] = [at, x0];
    at = Math.max(at, x1);
  }
  const width = clamp(to - from - 0.06, 0.22, 0.42);
  const centre = clamp((from + to) / 2 || 0.5, width / 2 + 0.03, 1 - width / 2 - 0.03);
  return boxBetween(centre - width / 2, 0.9 - width * 1.1, centre + width / 2, 0.9);
}

/**
 * What a listener hears of a shape.
 * @param {Place} place
 * @param {Shape} shape
 */
export function described(place, shape) {
  if ("rest" in shape) return `${place.subject}, everything that the others leave`;
  const [x0, y0, x1, y1] = boundsOf(shape).map(percent);
  const what = { box: "box", polygon: "polygon", mask: "painted", rest: "" }[kindOf(shape)];
  return `${place.subject}, ${what}, left ${x0} %, top ${y0} %, width ${percent((x1 - x0) / 100)} %, height ${percent((y1 - y0) / 100)} %`;
}

/** The places from the furthest back to the foremost.
 * @param {Place[]} places
 */
export const backToFront = (places) => [...places].reverse().sort((a, b) => a.z - b.z);

/** Black or white, whichever is read better on a colour.
 * @param {string} colour
 */
export function inkOn(colour) {
  const light = [1, 3, 5].map((at) => (parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > 0.18 ? "#000000" : "#ffffff";
}
