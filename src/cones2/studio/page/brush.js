/**
 * Painted places: small canvases whose opacity says how much of a pixel is inside, kept as PNG in base64.
 * What was decoded once is remembered, so that gestures never wait.
 */

/** @typedef {import("./shapes.js").Box} Box */

const SIDE = 256;
/** @type {Map<string, HTMLCanvasElement>} */
const decoded = new Map();

/**
 * An empty mask for a picture's aspect.
 * @param {number} aspect width by height
 */
export function blankMask(aspect) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(aspect >= 1 ? SIDE : SIDE * aspect));
  canvas.height = Math.max(1, Math.round(aspect >= 1 ? SIDE / aspect : SIDE));
  return canvas;
}

/** @param {HTMLCanvasElement} canvas */
const context = (canvas) => /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));

/** @param {HTMLCanvasElement} from */
export function copyOf(from) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [from.width, from.height];
  context(canvas).drawImage(from, 0, 0);
  return canvas;
}

/**
 * The canvas of a mask; a picture without transparency counts by its brightness.
 * @param {string} png
 * @returns {Promise<HTMLCanvasElement>}
 */
export async function maskCanvas(png) {
  const known = decoded.get(png);
  if (known) return known;
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const scale = Math.min(1, 768 / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const paint = context(canvas);
  paint.drawImage(image, 0, 0, canvas.width, canvas.height);
  const data = paint.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = data.data;
  let opaque = true;
  for (let at = 3; at < pixels.length && opaque; at += 4) opaque = pixels[at] === 255;
  for (let at = 0; at < pixels.length; at += 4) {
    if (opaque) pixels[at + 3] = Math.round((pixels[at] + pixels[at + 1] + pixels[at + 2]) / 3);
    pixels[at] = pixels[at + 1] = pixels[at + 2] = 255;
  }
  paint.putImageData(data, 0, 0);
  return remember(png, canvas);
}

/**
 * @param {string} png
 * @param {HTMLCanvasElement} canvas
 */
function remember(png, canvas) {
  decoded.set(png, canvas);
  if (decoded.size > 64) decoded.delete(/** @type {string} */ (decoded.keys().next().value));
  return canvas;
}

/** The decoded canvas, where it is at hand.
 * @param {string} png
 */
export const knownMask = (png) => decoded.get(png);

/**
 * A painted canvas as a shape; null where nothing is painted.
 * @param {HTMLCanvasElement} canvas
 * @returns {{mask: string, bounds: Box} | null}
 */
export function maskShape(canvas) {
  const bounds = canvasBounds(canvas);
  if (!bounds) return null;
  const mask = canvas.toDataURL("image/png").split(",")[1];
  remember(mask, canvas);
  return { mask, bounds };
}

/** @param {string} png */
export async function paintedBounds(png) {
  return canvasBounds(await maskCanvas(png)) ?? /** @type {Box} */ ([0, 0, 1, 1]);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @returns {Box | null}
 */
function canvasBounds(canvas) {
  const { width, height } = canvas;
  const { data } = context(canvas).getImageData(0, 0, width, height);
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (data[(y * width + x) * 4 + 3] < 8) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
    }
  }
  return right < 0 ? null : [left / width, top / height, (right + 1) / width, (bottom + 1) / height];
}

/**
 * The mask with what is painted moved or stretched to other bounds.
 * @param {{mask: string, bounds: Box}} shape
 * @param {Box} to
 */
export function fittedMask(shape, to) {
  const from = knownMask(shape.mask);
  if (!from) return shape;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [from.width, from.height];
  const [sx, sy, ex, ey] = shape.bounds.map((side, at) => side * (at % 2 ? from.height : from.width));
  const [dx, dy, fx, fy] = to.map((side, at) => side * (at % 2 ? from.height : from.width));
  context(canvas).drawImage(from, sx, sy, ex - sx, ey - sy, dx, dy, fx - dx, fy - dy);
  return maskShape(canvas) ?? shape;
}

/**
 * Paint or erase a line.
 * @param {HTMLCanvasElement} canvas
 * @param {[number, number]} from in fractions
 * @param {[number, number]} to
 * @param {{radius: number, erase: boolean, soft: boolean}} brush the radius in fractions of the width
 */
export function stroke(canvas, from, to, { radius, erase, soft }) {
  const paint = context(canvas);
  const { width, height } = canvas;
  const size = radius * width;
  paint.save();
  paint.globalCompositeOperation = erase ? "destination-out" : "source-over";
  paint.lineCap = paint.lineJoin = "round";
  paint.strokeStyle = "#fff";
  paint.lineWidth = Math.max(1, size * (soft ? 1.2 : 2));
  if (soft) {
    paint.shadowColor = "#fff";
    paint.shadowBlur = size * 0.8;
  }
  paint.beginPath();
  paint.moveTo(from[0] * width, from[1] * height);
  paint.lineTo(to[0] * width + 0.01, to[1] * height);
  paint.stroke();
  paint.restore();
}

/**
 * A mask in a colour, as a picture to show.
 * @param {HTMLCanvasElement} mask
 * @param {string} colour
 */
export function tinted(mask, colour) {
  const canvas = copyOf(mask);
  const paint = context(canvas);
  paint.globalCompositeOperation = "source-in";
  paint.fillStyle = colour;
  paint.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}
