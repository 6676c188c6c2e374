// DPM-Solver++ of second order, multistep, as diffusers' DPMSolverMultistepScheduler computes it from the same settings.
// Source: Lu et al. 2022, arXiv:2211.01095.

/** Rounds halves to the even number, as numpy does. */
function roundHalfEven(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/**
 * The timesteps of a drawing, from noise to picture.
 * @param {{alpha_bar: number[], timestep_spacing: string, steps_offset: number}} schedule of kanjilab.json
 * @param {number} steps
 * @returns {number[]}
 */
export function timestepsOf(schedule, steps) {
  const levels = schedule.alpha_bar.length;
  const numbers = Array.from({ length: steps }, (_, number) => number);
  if (schedule.timestep_spacing === "leading") {
    const ratio = Math.floor(levels / (steps + 1));
    return numbers.map((number) => (steps - number) * ratio + schedule.steps_offset);
  }
  if (schedule.timestep_spacing === "trailing") {
    return numbers.map((number) => roundHalfEven(levels - (number * levels) / steps) - 1);
  }
  return numbers.map((number) => roundHalfEven(((steps - number) * (levels - 1)) / steps));
}

/** The steps of one drawing; latents are changed in place of nothing, each step gives new ones. */
export class DpmSolver {
  /**
   * @param {object} schedule of kanjilab.json
   * @param {number} steps
   */
  constructor(schedule, steps) {
    this.prediction = schedule.prediction;
    this.timesteps = timestepsOf(schedule, steps);
    const sigmas = this.timesteps.map((t) => Math.sqrt((1 - schedule.alpha_bar[t]) / schedule.alpha_bar[t]));
    this.levels = [...sigmas, 0].map((sigma) => {
      const signal = 1 / Math.sqrt(sigma * sigma + 1);
      return { signal, noise: sigma * signal, lambda: -Math.log(sigma) };
    });
    this.taken = 0;
    this.before = null; // the clean latents that the step before predicted
  }

  /**
   * One step.
   * @param {Float32Array} latents
   * @param {Float32Array} predicted by the denoiser, after guidance
   * @returns {{latents: Float32Array, clean: Float32Array}} the next latents, and what the picture is taken to be
   */
  step(latents, predicted) {
    const [here, next] = [this.levels[this.taken], this.levels[this.taken + 1]];
    const clean = latents.map((value, at) =>
      this.prediction === "epsilon"
        ? (value - here.noise * predicted[at]) / here.signal
        : here.signal * value - here.noise * predicted[at],
    );
    const width = next.lambda - here.lambda; // infinite at the last step
    const share = next.signal * (1 - Math.exp(-width));
    const kept = next.noise / here.noise;
    const last = this.taken === this.timesteps.length - 1;
    const slope = this.before && !last ? width / (2 * (here.lambda - this.levels[this.taken - 1].lambda)) : 0;
    const before = this.before;
    const moved = latents.map((value, at) => {
      const aim = slope ? clean[at] + slope * (clean[at] - before[at]) : clean[at];
      return kept * value + share * aim;
    });
    this.before = clean;
    this.taken++;
    return { latents: moved, clean };
  }
}

/**
 * Classifier-free guidance, as `kanjilab.models.sampling.Sampling.guided` computes it.
 * @param {Float32Array} predicted of N pictures two or three times, side by side: by the empty prompt, by its arrays
 *   alone (where these have a scale), by all of it
 * @param {number} size numbers of a picture
 * @param {number} guidance of the caption, given the arrays
 * @param {number} [arrayGuidance] of the arrays, where they have a scale of their own
 * @returns {Float32Array} of N pictures
 */
export function guided(predicted, size, guidance, arrayGuidance) {
  const copies = arrayGuidance === undefined ? 2 : 3;
  const result = new Float32Array(predicted.length / copies);
  for (let at = 0; at < result.length; at++) {
    const start = Math.floor(at / size) * copies * size + (at % size);
    const empty = predicted[start];
    const all = predicted[start + (copies - 1) * size];
    const led = copies === 3 ? predicted[start + size] : empty;
    result[at] = empty + (copies === 3 ? arrayGuidance * (led - empty) : 0) + guidance * (all - led);
  }
  return result;
}
