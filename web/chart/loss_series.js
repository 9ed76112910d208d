// Curves of a run: continuing, thinning, scales and zoom. Pure, tested by tests/web/chart/loss_series.test.mjs.
//
// A curve is {step, low, high, smooth, rate, ema: {value, weight}, decay}: equally long arrays, one entry a bucket of
// steps, `step` its last step, low and high the least and largest loss in it (null where none was finite).

export const MOST_POINTS = 600

/** The curve of the server's answer; empty without one. */
export function fromAnswer(answer) {
  const { step = [], low = [], high = [], smooth = [], learning_rate: rate = [] } = answer?.curve ?? {}
  const { ema = { value: 0, weight: 0 }, ema_decay: decay = 0.98 } = answer ?? {}
  return { step, low, high, smooth, rate, ema, decay }
}

export const lastStep = (curve) => curve.step.at(-1) ?? 0

/** The curve with points [step, loss or null, rate] after it, and whether some between were missed. */
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

/** What lies in steps first..last and the entry on either side, in at most `most` buckets of equal length. */
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

const LOW_SHARE = 0.02

/** The losses to show: all that is smooth or measured, and the raw ones but for the outermost 2 % on either side. */
export function lossRange(curves, others = [], isLog = false) {
  const isUsable = (value) => Number.isFinite(value) && (!isLog || value > 0)
  const usable = (values) => values.filter(isUsable).sort((a, b) => a - b)
  const low = usable(curves.flatMap((curve) => curve.low))
  const high = usable(curves.flatMap((curve) => curve.high))
  const exact = usable([...curves.flatMap((curve) => curve.smooth), ...others])
  const [lowest, highest] = [Math.floor(low.length * LOW_SHARE), Math.ceil(high.length * (1 - LOW_SHARE)) - 1]
  const ends = [low[lowest], high[highest], exact[0], exact.at(-1)]
  const [least, most] = [Math.min, Math.max].map((end) => end(...usable(ends)))
  if (!Number.isFinite(least)) return isLog ? [0.01, 1] : [0, 1]
  if (isLog) return least < most ? [least / 1.05, most * 1.05] : [least / 2, least * 2]
  const margin = (most - least || Math.abs(most) || 1) * 0.05
  return [least - margin, most + margin]
}

/** A function from values in [low, high] to pixels in [start, end], with its inverse as .back. */
export function scale([low, high], [start, end], isLog = false) {
  const [to, from] = isLog ? [Math.log, Math.exp] : [(value) => value, (value) => value]
  const size = to(high) - to(low) || 1
  const place = (value) => start + ((to(isLog ? Math.max(value, low / 1e3) : value) - to(low)) / size) * (end - start)
  place.back = (pixel) => from(to(low) + ((pixel - start) / (end - start || 1)) * size)
  return place
}

/** Round values in [low, high], about `count` of them. */
export function ticks([low, high], count, isWhole = false) {
  if (!(high > low)) return [low]
  const rough = (high - low) / Math.max(1, count)
  const power = 10 ** Math.floor(Math.log10(rough))
  let unit = [1, 2, 5, 10].find((each) => each * power >= rough) * power
  if (isWhole) unit = Math.max(1, Math.round(unit))
  const found = []
  for (let index = Math.ceil(low / unit - 1e-9); index * unit <= high + unit * 1e-9; index++) {
    found.push(Number((index * unit).toPrecision(12)))
  }
  return found
}

/** The same for a log scale: powers of ten with 2 and 5 between where there is room; linear ones within one decade. */
export function logTicks([low, high], count) {
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const found = []
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      found.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(6))))
    }
    const inside = found.filter((value) => value >= low && value <= high)
    if (inside.length < 3) return ticks([low, high], count)
    if (inside.length <= count * 1.5) return inside
  }
  return [low, high]
}

/** Epochs whose end lies in steps first..last, about `count` of them, as {epoch, step}. */
export function epochMarks([first, last], stepsPerEpoch, count) {
  if (!stepsPerEpoch) return []
  const range = [first / stepsPerEpoch, last / stepsPerEpoch]
  return ticks(range, count, true)
    .filter((epoch) => Number.isInteger(epoch) && epoch > 0 && epoch >= range[0] && epoch <= range[1])
    .map((epoch) => ({ epoch, step: epoch * stepsPerEpoch }))
}

/** The epoch of a step, counted from 1. */
export const epochOf = (step, stepsPerEpoch) => (stepsPerEpoch ? Math.max(1, Math.ceil(step / stepsPerEpoch)) : null)

const LEAST_WINDOW = 4

/** The window [first, last] enlarged or narrowed around a step, within [0, end]. Null is everything. */
export function zoomed([first, last], centre, factor, end) {
  const length = Math.max(LEAST_WINDOW, (last - first) * factor)
  const share = last > first ? (centre - first) / (last - first) : 0.5
  return within([centre - length * share, centre + length * (1 - share)], end)
}

/** Moved by some steps, of the same length. */
export const moved = ([first, last], by, end) => within([first + by, last + by], end)

/** A chosen window as whole steps within [0, end]; null where that is everything. */
export function within([first, last], end) {
  const length = Math.max(LEAST_WINDOW, Math.round(last) - Math.round(first))
  if (length >= end) return null
  const start = Math.min(Math.max(0, Math.round(first)), end - length)
  return [start, start + length]
}

/** At most one mark for each `gap` pixels; the best one and later ones go first. */
export function spread(marks, place, gap) {
  const chosen = []
  for (const mark of [...marks].sort((a, b) => Number(b.best) - Number(a.best) || b.step - a.step)) {
    if (chosen.every((other) => Math.abs(place(other.step) - place(mark.step)) >= gap)) chosen.push(mark)
  }
  return chosen.sort((a, b) => a.step - b.step)
}

/** "M1 2L3 4" through the points whose value is there; a missing one breaks the line. */
export function line(steps, values, x, y) {
  let path = ''
  let isDown = false
  for (let index = 0; index < steps.length; index++) {
    if (!Number.isFinite(values[index])) isDown = false
    else {
      path += `${isDown ? 'L' : 'M'}${x(steps[index]).toFixed(1)} ${y(values[index]).toFixed(1)}`
      isDown = true
    }
  }
  return path
}

/** A closed band between two such lines, in as many pieces as gaps make. */
export function band(steps, low, high, x, y) {
  let path = ''
  for (let start = 0; start < steps.length; ) {
    let end = start
    while (end < steps.length && Number.isFinite(low[end]) && Number.isFinite(high[end])) end++
    if (end > start) {
      const there = line(steps.slice(start, end), high.slice(start, end), x, y)
      const back = line(steps.slice(start, end).reverse(), low.slice(start, end).reverse(), x, y)
      path += `${there}L${back.slice(1)}Z`
    }
    start = end + 1
  }
  return path
}
