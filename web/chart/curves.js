// The curves of a chart, as SVG.

import { svg } from '../shared/elements.js'
import { band, line } from './paths.js'

/** CSS colours of the curves of several runs, in the order of the runs. */
export const COLOURS = ['one', 'two', 'three', 'four', 'five', 'six'].map((name) => `var(--wt-${name})`)

export const colourOf = ({ colour }, index) => colour ?? COLOURS[index % COLOURS.length]

/** The lines of all series; if there is only one, also a band from its lowest to its highest raw losses. */
export function curves(series, area) {
  return series.flatMap((each, index) =>
    curvesOf(each, area.parts[index], colourOf(each, index), series.length === 1, area))
}

/** What was learned of all series, in the strip below the losses. */
export function stripLines(series, { strip, x }) {
  return strip.lines.map((measured, index) => {
    const style = series.length === 1 ? '' : `stroke: ${colourOf(series[index], index)}`
    return learnedLine(measured, x, strip.y, style)
  })
}

function learnedLine(measured, x, y, style) {
  const known = measured.filter(({ learned }) => learned !== null)
  if (known.length === 1) { // a path through one point draws nothing
    return svg('circle', { class: 'wt-learned', cx: x(known[0].step), cy: y(known[0].learned), r: 2.5, style })
  }
  const [steps, values] = [measured.map(({ step }) => step), measured.map(({ learned }) => learned)]
  return svg('path', { class: 'wt-learned', d: line(steps, values, x, y), style })
}

function curvesOf({ heldOut = [] }, part, colour, isOne, { x, y, yRate }) {
  const stroke = `stroke: ${colour}`
  const heldStroke = isOne ? 'stroke: var(--wt-two)' : stroke
  const steps = heldOut.map(({ step }) => step)
  const losses = heldOut.map(({ loss }) => loss)
  return [
    isOne && svg('path', { class: 'wt-raw', d: band(part.step, part.low, part.high, x, y),
      style: `${stroke}; fill: ${colour}` }),
    yRate && svg('path', { class: 'wt-rate', d: line(part.step, part.rate, x, yRate), style: isOne ? '' : stroke }),
    svg('path', { class: 'wt-base', d: line(steps, heldOut.map((each) => each.base_loss), x, y), style: heldStroke }),
    svg('path', { class: 'wt-smooth', d: line(part.step, part.smooth, x, y), style: stroke }),
    svg('path', { class: 'wt-held', d: line(steps, losses, x, y), style: heldStroke }),
    // a path through one point draws nothing
    heldOut.length === 1 &&
      svg('circle', { class: 'wt-held', cx: x(steps[0]), cy: y(losses[0]), r: 2.5, style: heldStroke }),
  ].filter(Boolean)
}
