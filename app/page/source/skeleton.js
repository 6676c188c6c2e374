// Skeletons of strokes, as kanjilab/data/skeleton.py makes them, to within a pixel.

export const SIDE = 128; // pixels along an edge
const POINTS_A_PX = 2; // at which the way of a pen is followed, along its longer axis
const NIB = [-1, 0, 1].flatMap((down) => [-1, 0, 1].map((across) => [across, down])); // what it inks, around a pixel
const RIMMED = SIDE + 2; // with a rim of paper
const AROUND = [-RIMMED, 1 - RIMMED, 1, RIMMED + 1, RIMMED, RIMMED - 1, -1, -RIMMED - 1]; // clockwise from above

/** Points close to each other on the way through those of a stroke. */
function* way(points) {
  for (let at = 0; at + 1 < points.length; at++) {
    const [[x, y], [toX, toY]] = [points[at], points[at + 1]];
    const count = Math.ceil(POINTS_A_PX * Math.max(Math.abs(toX - x), Math.abs(toY - y)));
    for (let step = 0; step < count; step++) yield [x + (toX - x) * (step / count), y + (toY - y) * (step / count)];
  }
  if (points.length) yield points.at(-1);
}

/**
 * The skeleton of what was drawn with a pen: each pixel that it crossed, with those around it, thinned.
 * @param {number[][][]} strokes each the points [x, y] that the pen went through, in px of the skeleton
 * @returns {Uint8Array} (128 · 128), 1 on a line
 */
export function skeletonOfStrokes(strokes) {
  const ink = new Uint8Array(SIDE * SIDE);
  const inside = (value) => value >= 0 && value < SIDE;
  for (const [x, y] of strokes.flatMap((points) => [...way(points)])) {
    for (const [across, down] of NIB) {
      const [column, row] = [Math.floor(x) + across, Math.floor(y) + down];
      if (inside(column) && inside(row)) ink[row * SIDE + column] = 1;
    }
  }
  return thin(ink);
}

/** The place of a pixel in the picture with a rim. */
const rimmed = (at) => (Math.floor(at / SIDE) + 1) * RIMMED + (at % SIDE) + 1;

/** Which pixels go, by their neighbours, in one of the two alternating passes. */
const REMOVABLE = [false, true].map((second) =>
  Uint8Array.from({ length: 256 }, (_, code) => {
    const near = AROUND.map((_, bit) => (code >> bit) & 1);
    const [above, aboveRight, right, belowRight, below, belowLeft, left, aboveLeft] = near;
    const corners = [0, 2, 4, 6].map((side) => [near[side], near[side + 1], near[(side + 2) % 8]]);
    const branches = corners.filter(([side, corner, following]) => !side && (corner || following)).length;
    const one = (aboveLeft | above) + (aboveRight | right) + (belowRight | below) + (belowLeft | left);
    const two = (above | aboveRight) + (right | belowRight) + (below | belowLeft) + (left | aboveLeft);
    const kept = second ? (above | aboveRight | !belowRight) & right : (below | belowLeft | !aboveLeft) & left;
    const least = Math.min(one, two);
    return Number(branches === 1 && least >= 2 && least <= 3 && !kept);
  }),
);

/**
 * Strokes thinned to lines, connected as before.
 * @param {Uint8Array} ink (128 · 128), 1 where there is ink
 * @returns {Uint8Array} likewise, a subset
 * Source: Guo and Hall 1989, algorithm A1, as `kanjilab.data.skeleton.thin` has it.
 */
export function thin(ink) {
  const paper = new Uint8Array(RIMMED * RIMMED);
  ink.forEach((one, at) => (paper[rimmed(at)] = one));
  const codeOf = (at) => AROUND.reduce((code, step, bit) => code | (paper[at + step] << bit), 0);
  let inked = [...paper.keys()].filter((at) => paper[at]);
  for (let before = Infinity; inked.length < before; ) {
    before = inked.length;
    for (const removable of REMOVABLE) {
      const gone = inked.filter((at) => removable[codeOf(at)]);
      gone.forEach((at) => (paper[at] = 0));
      inked = inked.filter((at) => paper[at]);
    }
  }
  return ink.map((_, at) => paper[rimmed(at)]);
}

/** Packed bits, eight pixels in a byte, the leftmost highest, as one number a pixel. */
export function unpack(packed) {
  return Uint8Array.from({ length: 8 * packed.length }, (_, at) => (packed[at >> 3] >> (7 - (at & 7))) & 1);
}
