// The window of steps that is shown: enlarged, narrowed, moved. Pure, tested by tests/web/chart/zoom.test.mjs.

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
