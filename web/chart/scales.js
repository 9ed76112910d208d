// From losses and steps to pixels, and the values at which a grid has its lines. Pure, tested by
// tests/web/chart/scales.test.mjs.

const LOW_SHARE = 0.02

/** [least, most] loss to show: covers all of `smooth` and `others`, and the raw losses but for 2 % at either end. */
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

/** At most one mark for each `gap` pixels; the best one, then later ones, take precedence. */
export function spread(marks, place, gap) {
  const chosen = []
  for (const mark of [...marks].sort((a, b) => Number(b.best) - Number(a.best) || b.step - a.step)) {
    if (chosen.every((other) => Math.abs(place(other.step) - place(mark.step)) >= gap)) chosen.push(mark)
  }
  return chosen.sort((a, b) => a.step - b.step)
}
