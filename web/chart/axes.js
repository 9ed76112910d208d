// The grid of a chart with its numbers, as SVG.

import { svg } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { compact } from '../shared/number_text.js'
import { MARGIN } from './plot_area.js'
import { epochMarks, logTicks, ticks } from './scales.js'

const text = (attributes, content) => svg('text', attributes, content)

/** Losses at the left, steps below, epochs above where there are some, learning rates at the right where they are shown;
 * below the losses what was learned, where that was measured. */
export function axes({ first, last, range, y, rateRange, yRate, right, bottom, foot, x, strip }, isLog, stepsPerEpoch) {
  const rows = Math.max(2, Math.floor((bottom - MARGIN.top) / 32))
  const columns = Math.max(2, Math.floor((right - MARGIN.left) / 70))
  const losses = (isLog ? logTicks(range, rows) : ticks(range, rows)).flatMap((value) => [
    svg('line', { x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
    text({ x: MARGIN.left - 5, y: y(value) + 3.5, 'text-anchor': 'end' }, compact(value)),
  ])
  const steps = ticks([first, last], columns, true).map((step) =>
    text({ x: x(step), y: foot + 14, 'text-anchor': step === last ? 'end' : 'middle' }, step))
  const epochs = epochMarks([first, last], stepsPerEpoch, columns).flatMap(({ epoch, step }) => [
    svg('line', { class: 'wt-epoch', x1: x(step), x2: x(step), y1: MARGIN.top, y2: bottom }),
    text({ x: x(step), y: MARGIN.top - 5, 'text-anchor': x(step) > right - 12 ? 'end' : 'middle' }, epoch),
  ])
  const names = [text({ x: 4, y: foot + 14 }, t('chart.steps')), text({ x: 4, y: MARGIN.top - 5 }, t('chart.epochs'))]
  const rates = yRate ? ticks(rateRange, Math.min(rows, 4)).map((value) =>
    text({ class: 'wt-rate-text', x: right + 5, y: yRate(value) + 3.5 }, compact(value))) : []
  return [...losses, ...steps, ...epochs, ...names, ...rates, ...(strip ? stripAxes(strip, right) : [])]
}

/** What is learned at the left, with its name above. */
function stripAxes({ top, range, y }, right) {
  return [
    text({ x: 4, y: top - 5 }, t('chart.learned')),
    ...ticks(range, 3).flatMap((value) => [
      svg('line', { x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
      text({ x: MARGIN.left - 5, y: y(value) + 3.5, 'text-anchor': 'end' }, compact(value)),
    ]),
  ]
}
