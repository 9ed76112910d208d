// Loss curves of a run: appending points, thinning them out. Pure, tested by tests/web/chart/loss_series.test.mjs.
//
// A curve is {step, low, high, smooth, rate, ema: {value, weight}, decay}: equally long arrays, an entry for each
// bucket of steps: `step` its last step, low and high its least and largest loss (null where none was finite), smooth
// the moving average of the loss, rate the learning rate. `ema` continues that average, which is value / weight.

export const MOST_POINTS = 600

/** The curve in the answer of GET /wantune/runs/{run}; an empty one without an answer. */
export function fromAnswer(answer) {
  const { step = [], low = [], high = [], smooth = [], learning_rate: rate = [] } = answer?.curve ?? {}
  const { ema = { value: 0, weight: 0 }, ema_decay: decay = 0.98 } = answer ?? {}
  return { step, low, high, smooth, rate, ema, decay }
}

export const lastStep = (curve) => curve.step.at(-1) ?? 0

/** {curve, isGap}: the curve with points [step, loss or null, rate] appended, and whether steps are missing in it. */
export function append(curve, points) {
  const fresh = points.filter(([step]) => step > lastStep(curve))
  if (!fresh.length) return { curve, isGap: false }
  const isGap = fresh.some(([step], index) => step !== (index ? fresh[index - 1][0] : lastStep(curve)) + 1)
  const { decay } = curve
  let { value, weight } = curve.ema
  const smooth = fresh.map(([, loss]) => {
    if (Number.isFinite(loss)) {
      value = decay * value + (1 - decay) * loss
      weight = decay * weight + (1 - decay)
    }
    return weight > 0 ? value / weight : null
  })
  const losses = fresh.map(([, loss]) => (Number.isFinite(loss) ? loss : null))
  const longer = {
    step: [...curve.step, ...fresh.map(([step]) => step)],
    low: [...curve.low, ...losses],
    high: [...curve.high, ...losses],
    smooth: [...curve.smooth, ...smooth],
    rate: [...curve.rate, ...fresh.map(([, , rate]) => rate)],
    ema: { value, weight },
    decay,
  }
  if (longer.step.length <= 4 * MOST_POINTS) return { curve: longer, isGap }
  return { curve: thinned(longer, 0, lastStep(longer), 2 * MOST_POINTS), isGap }
}

const least = (a, b) => (a == null ? b : b == null ? a : Math.min(a, b))
const largest = (a, b) => (a == null ? b : b == null ? a : Math.max(a, b))

/** The part of a curve in steps first..last, and one entry on either side, in at most `most` equal buckets. */
export function thinned(curve, first, last, most = MOST_POINTS) {
  const from = Math.max(0, above(curve.step, first) - 1)
  const to = Math.min(curve.step.length, above(curve.step, last + 0.5) + 1)
  const part = { ...curve, step: [], low: [], high: [], smooth: [], rate: [] }
  // a bucket can be cut by either side of the window, so there may be two more than are asked for
  const length = Math.max(1, (last - first) / Math.max(1, most - 3))
  let current = null
  for (let index = from; index < to; index++) {
    const bucket = Math.ceil((curve.step[index] - first) / length)
    const at = part.step.length - (bucket === current ? 1 : 0)
    part.low[at] = bucket === current ? least(part.low[at], curve.low[index]) : curve.low[index]
    part.high[at] = bucket === current ? largest(part.high[at], curve.high[index]) : curve.high[index]
    for (const name of ['step', 'smooth', 'rate']) part[name][at] = curve[name][index]
    current = bucket
  }
  return part
}

function above(sorted, value) {
  let low = 0
  let high = sorted.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (sorted[middle] < value) low = middle + 1
    else high = middle
  }
  return low
}

/** The index of the entry nearest to a step; -1 where there is none. */
export function nearest(sorted, step) {
  const index = above(sorted, step)
  if (index === sorted.length) return index - 1
  return index && step - sorted[index - 1] <= sorted[index] - step ? index - 1 : index
}

/** The epoch of a step, counted from 1. */
export const epochOf = (step, stepsPerEpoch) => (stepsPerEpoch ? Math.max(1, Math.ceil(step / stepsPerEpoch)) : null)
