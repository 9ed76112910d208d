// The marks of checkpoints at the lower edge of a chart, which can be clicked and reached by keyboard.

import { svg } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { colourOf } from './curves.js'
import { spread } from './scales.js'

const MARK_GAP = 13
const HANDLE = 'M0 -6L6 0L0 6L-6 0Z'
const STAR = 'M0 -8L2.2 -2.8L7.8 -2.4L3.5 1.2L4.9 6.7L0 3.7L-4.9 6.7L-3.5 1.2L-7.8 -2.4L-2.2 -2.8Z'

/** Draws the marks of all series anew into `layer`; `choose(series, checkpoint)` is called with what was clicked. */
export function drawMarks(layer, series, { x, bottom, isInside }, choose) {
  if (layer.matches(':active')) return // replacing the mark that is pressed would lose its click
  const focused = layer.querySelector(':focus')?.dataset.key
  const marks = series.flatMap((each, index) =>
    spread((each.checkpoints ?? []).filter(isInside), x, MARK_GAP).map((checkpoint) => ({
      checkpoint,
      key: `${each.run}/${checkpoint.step}`,
      place: `translate(${x(checkpoint.step).toFixed(1)} ${bottom})`,
      style: series.length > 1 ? `fill: ${colourOf(each, index)}` : '',
      act: () => choose(each, checkpoint),
    })))
  // Tab reaches one mark only, from which arrow keys lead to the others
  const reached = marks.find(({ key }) => key === focused) ?? marks.at(-1)
  layer.replaceChildren(...marks.map((mark) => markElement(mark, mark === reached)))
  if (focused) [...layer.children].find((mark) => mark.dataset.key === focused)?.focus({ preventScroll: true })
}

function markElement({ checkpoint: { step, best }, key, place, style, act }, isReached) {
  const name = t(best ? 'chart.checkpoint_best' : 'chart.checkpoint', { step })
  return svg('g', { class: best ? 'wt-mark wt-best' : 'wt-mark', role: 'button', 'data-key': key, 'aria-label': name,
    tabindex: isReached ? 0 : -1, onclick: act, onkeydown: (event) => onKey(event, act), transform: place, style },
  svg('title', {}, name), svg('rect', { x: -7, y: -9, width: 14, height: 18 }), svg('path', { d: best ? STAR : HANDLE }))
}

function onKey(event, act) {
  const way = { ArrowLeft: 'previousElementSibling', ArrowRight: 'nextElementSibling' }[event.key]
  if (!way && event.key !== 'Enter' && event.key !== ' ') return
  event.preventDefault()
  event.stopPropagation()
  if (!way) return act()
  const next = event.currentTarget[way]
  if (!next) return
  event.currentTarget.setAttribute('tabindex', -1)
  next.setAttribute('tabindex', 0)
  next.focus()
}
