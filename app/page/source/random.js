// The random numbers of kanjilab.core.rng: a seed means the same noise here and in Python.
// Philox 4x64-10 (Salmon et al. 2011) and the ziggurat for float32 normals (Marsaglia and Tsang 2000), as in numpy.

const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const BUMPS = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];
const WORD = (1n << 64n) - 1n;
const ROUNDS = 10;
export const SAMPLING_NOISE = 3; // the stream's number in kanjilab.core.rng.STREAMS

/** Four 64-bit words for a counter and a key. */
function philox(counter, key) {
  let [a, b, c, d] = counter;
  let [left, right] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const first = MULTIPLIERS[0] * a;
    const second = MULTIPLIERS[1] * c;
    [a, b, c, d] = [(second >> 64n) ^ b ^ left, second & WORD, (first >> 64n) ^ d ^ right, first & WORD];
    left = (left + BUMPS[0]) & WORD;
    right = (right + BUMPS[1]) & WORD;
  }
  return [a, b, c, d];
}

/** 32-bit numbers of one place in one stream, without end: of each 64-bit word the lower half first. */
function* words(seed, stream, index) {
  const key = [BigInt(seed), BigInt(index)];
  for (let block = 1n; ; block++) {
    for (const word of philox([block, 0n, 0n, BigInt(stream)], key)) {
      yield Number(word & 0xffffffffn);
      yield Number(word >> 32n);
    }
  }
}

const RIGHTMOST = 3.6541528853610088; // where the ziggurat's tail begins
const AREA = 0.00492867323399; // of each of its layers
const LAYERS = 256;
const SPAN = 2 ** 23;

/** The ziggurat's layers: below which integer a draw is inside, what an integer is worth, and the height. */
function ziggurat() {
  const inside = new Uint32Array(LAYERS);
  const worth = new Float32Array(LAYERS);
  const height = new Float32Array(LAYERS);
  const density = (x) => Math.exp(-0.5 * x * x);
  let x = RIGHTMOST;
  const base = AREA / density(x);
  inside[0] = (x / base) * SPAN;
  worth[0] = base / SPAN;
  height[0] = 1;
  worth[LAYERS - 1] = x / SPAN;
  height[LAYERS - 1] = density(x);
  for (let layer = LAYERS - 2; layer > 0; layer--) {
    const above = Math.sqrt(-2 * Math.log(AREA / x + density(x)));
    inside[layer + 1] = (above / x) * SPAN;
    worth[layer] = above / SPAN;
    height[layer] = density(above);
    x = above;
  }
  return { inside, worth, height };
}

const { inside, worth, height } = ziggurat();
const round = Math.fround;

function normal(bits) {
  const next = () => bits.next().value;
  const uniform = () => round((next() >>> 8) / 2 ** 24);
  for (;;) {
    const drawn = next();
    const layer = drawn & 0xff;
    const size = (drawn >>> 9) & 0x7fffff;
    const sign = (drawn >>> 8) & 1 ? -1 : 1;
    const x = round(sign * round(size * worth[layer]));
    if (size < inside[layer]) return x;
    if (layer === 0) {
      const edge = round(RIGHTMOST);
      for (;;) {
        const over = round(round(-1 / RIGHTMOST) * round(Math.log1p(-uniform())));
        const under = -round(Math.log1p(-uniform()));
        if (2 * under > over * over) return (size >>> 8) & 1 ? -round(edge + over) : round(edge + over);
      }
    }
    const step = round(height[layer - 1] - height[layer]);
    if (round(round(step * uniform()) + height[layer]) < Math.exp(-0.5 * x * x)) return x;
  }
}

/**
 * Standard normal numbers, as numpy's Generator(Philox(key=[seed, index], counter=[0, 0, 0, stream])) draws float32.
 * @param {number} seed a whole number from 0
 * @param {number} count
 * @param {number} [stream] of kanjilab.core.rng.STREAMS
 * @param {number} [index]
 * @returns {Float32Array}
 */
export function normals(seed, count, stream = SAMPLING_NOISE, index = 0) {
  const bits = words(seed, stream, index);
  return Float32Array.from({ length: count }, () => normal(bits));
}
