// Where things lie in a chart: its window of steps, its scales, and what of each curve is drawn. Pure, tested by
// tests/web/chart/plot_area.test.mjs.

import { lastStep, thinned } from './loss_series.js'
import { hasMeters, metersOf } from './meters.js'
import { lossRange, scale } from './scales.js'

export const MARGIN = { left: 46, right: 10, rate: 50, top: 18, bottom: 20 }
const STRIP = { height: 42, gap: 18 }

/** The last step that any of the series has. */
export const endOf = (series) => Math.max(1, ...series.map(({ curve }) => lastStep(curve)))

/** The curve of one of the series, or its detail where that covers the whole view. */
export const shownCurve = ({ curve, detail }, view) =>
  view && detail && detail.first <= view[0] && detail.last >= view[1] ? detail.curve : curve

/**
 * Of a plot of so many pixels: steps first..last and isInside(mark) for them; the edges right and bottom; the scales x, y
 * (losses, in `range`) and yRate (learning rates, in `rateRange`; null where they are not shown); `parts`, what is drawn
 * of the curve of each of the series; `strip`, what lies below the losses (stripOf), null where they were never
 * measured; `foot`, the lower edge of all that is drawn.
 */
export function plotArea(series, view, { isLog, hasRate }, [width, height]) {
  const [first, last] = view ?? [0, endOf(series)]
  const foot = height - MARGIN.bottom
  const strip = series.some(({ heldOut }) => hasMeters(heldOut)) ? stripOf(series, foot) : null
  const right = width - (hasRate ? MARGIN.rate : MARGIN.right)
  const bottom = strip ? strip.top - STRIP.gap : foot
  const isInside = ({ step }) => step >= first && step <= last
  const parts = series.map((each) => thinned(shownCurve(each, view), first, last))
  const held = series.flatMap(({ heldOut = [] }) => heldOut.filter(isInside)).flatMap((each) => [each.loss, each.base_loss])
  const range = lossRange(parts, held, isLog)
  const rates = hasRate ? parts.flatMap(({ rate }) => rate).filter(Number.isFinite) : []
  const rateRange = [0, Math.max(1e-12, ...rates) * 1.05]
  return {
    first, last, isInside, right, bottom, foot, range, rateRange, parts, strip,
    x: scale([first, last], [MARGIN.left, right]),
    y: scale(range, [bottom, MARGIN.top], isLog),
    yRate: hasRate ? scale(rateRange, [bottom, MARGIN.top]) : null,
  }
}

/**
 * What was learned: `lines`, metersOf() each of the series; the upper edge; the scale y and its range. Of the whole run,
 * also where less of it is shown: its size matters as much as its way.
 */
function stripOf(series, foot) {
  const top = foot - STRIP.height
  const lines = series.map(({ heldOut }) => metersOf(heldOut))
  const values = lines.flat().map(({ learned }) => learned).filter(Number.isFinite)
  const range = [Math.min(0, ...values), Math.max(0.01, ...values) * 1.05]
  return { top, lines, range, y: scale(range, [foot, top]) }
}
