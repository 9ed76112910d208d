// The chart of one run, or of several over each other, as SVG: for the panel of Train Wan LoRA and the run browser.

import { el, stylesheet, svg } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { compact } from '../shared/number_text.js'
import { band, epochMarks, epochOf, lastStep, line, logTicks, lossRange, nearest, scale, spread, thinned, ticks } from './loss_series.js'
import { followPointer } from './pointer.js'

const MARGIN = { left: 46, right: 10, rate: 50, top: 18, bottom: 20 }
/** Of several runs, in their order. */
export const COLOURS = ['one', 'two', 'three', 'four', 'five', 'six'].map((name) => `var(--wt-${name})`)
const MARK_GAP = 13
const HANDLE = 'M0 -6L6 0L0 6L-6 0Z'
const STAR = 'M0 -8L2.2 -2.8L7.8 -2.4L3.5 1.2L4.9 6.7L0 3.7L-4.9 6.7L-3.5 1.2L-7.8 -2.4L-2.2 -2.8Z'

let made = 0

/**
 * A chart: {element, show(series), redraw(), resetZoom(), destroy()}.
 *
 * show([{run, name, colour, curve, detail, heldOut, checkpoints, stepsPerEpoch}]): `curve` as loss_series.js has it
 * (fromAnswer of GET /wantune/runs/{run}), `heldOut` [{step, loss, base_loss}], `checkpoints` [{step, best}]; colour
 * and detail may be left out.
 * `detail` {first, last, curve} is drawn instead of the curve while the window lies within first..last.
 *
 * onzoom(first, last) is told the window of steps once it rests, 0 and 0 for all; oncheckpoint(series, checkpoint) what
 * was clicked.
 */
export function createChart({ onzoom = () => {}, oncheckpoint = () => {} } = {}) {
  stylesheet('chart/chart.css')
  const clip = `wt-clip-${made++}`
  const layer = (name) => [name, svg('g', { class: `wt-${name}` })]
  const layers = Object.fromEntries(['grid', 'lines', 'marks', 'cursor'].map(layer))
  layers.lines.setAttribute('clip-path', `url(#${clip})`)
  const clipped = svg('rect')
  const chosen = svg('rect', { class: 'wt-chosen', y: MARGIN.top })
  const drawing = svg('svg', {}, svg('defs', {}, svg('clipPath', { id: clip }, clipped)), layers.grid,
    layers.lines, chosen, layers.cursor, layers.marks)
  const plot = el('div', { class: 'wt-plot', tabindex: 0, role: 'group', 'aria-roledescription': t('chart.chart'),
    'aria-label': t('chart.chart_label') }, drawing)
  const legend = el('div', { class: 'wt-legend' })
  const spoken = el('div', { class: 'wt-spoken', 'aria-live': 'polite' })
  const toggles = { isLog: false, hasRate: false }
  const toggle = (name, key) => el('button', { type: 'button', 'aria-pressed': 'false', title: t(`chart.${key}_help`),
    onclick: (event) => {
      toggles[name] = !toggles[name]
      event.currentTarget.setAttribute('aria-pressed', toggles[name])
      draw()
    } }, t(`chart.${key}`))
  const all = el('button', { type: 'button', title: t('chart.all_help'), onclick: () => setView(null) }, t('chart.all'))
  // not on the plot itself, where a tooltip would hide what is pointed at
  const help = el('span', { class: 'wt-help', tabindex: 0, role: 'note', title: t('chart.chart_help'),
    'aria-label': t('chart.chart_help') }, '?')
  const tools = el('div', { class: 'wt-row wt-tools' }, toggle('isLog', 'log'), toggle('hasRate', 'rate'), all, help)
  const element = el('div', { class: 'wt-chart' }, legend, plot, tools, spoken)

  let series = []
  let view = null
  let pointed = null // a step
  let x = scale([0, 1], [0, 1])
  let told = 0

  const end = () => Math.max(1, ...series.map(({ curve }) => lastStep(curve)))
  const shownSteps = () => view ?? [0, end()]
  const shownCurve = ({ curve, detail }) =>
    view && detail && detail.first <= view[0] && detail.last >= view[1] ? detail.curve : curve
  const colourOf = (each, index) => each.colour ?? COLOURS[index % COLOURS.length]

  function setView(next) {
    view = next
    draw()
    clearTimeout(told)
    told = setTimeout(() => onzoom(...(view ?? [0, 0])), 300)
  }

  function draw() {
    const [width, height] = [plot.clientWidth, plot.clientHeight]
    if (width < 80 || height < 60) return
    if (view && view[1] > end()) view = null
    const right = width - (toggles.hasRate ? MARGIN.rate : MARGIN.right)
    const bottom = height - MARGIN.bottom
    const [first, last] = shownSteps()
    drawing.setAttribute('viewBox', `0 0 ${width} ${height}`)
    for (const [name, value] of Object.entries({ x: MARGIN.left, y: MARGIN.top, width: right - MARGIN.left,
      height: bottom - MARGIN.top })) clipped.setAttribute(name, value)
    chosen.setAttribute('height', bottom - MARGIN.top)
    x = scale([first, last], [MARGIN.left, right])
    const drawn = series.map((each) => ({ ...each, part: thinned(shownCurve(each), first, last) }))
    const inside = ({ step }) => step >= first && step <= last
    const held = drawn.flatMap(({ heldOut = [] }) => heldOut.filter(inside))
      .flatMap((each) => [each.loss, each.base_loss])
    const range = lossRange(drawn.map(({ part }) => part), held, toggles.isLog)
    const y = scale(range, [bottom, MARGIN.top], toggles.isLog)
    const rates = toggles.hasRate ? drawn.flatMap(({ part }) => part.rate).filter(Number.isFinite) : []
    const rateRange = [0, Math.max(1e-12, ...rates) * 1.05]
    const yRate = toggles.hasRate ? scale(rateRange, [bottom, MARGIN.top]) : null
    drawGrid({ first, last, range, y, rateRange, yRate, right, bottom })
    layers.lines.replaceChildren(...drawn.flatMap((each, index) => lines(each, index, y, yRate)))
    drawMarks(inside, bottom)
    all.disabled = !view
    layers.cursor.dataset.bottom = bottom
    drawCursor()
  }

  function drawGrid({ first, last, range, y, rateRange, yRate, right, bottom }) {
    const text = (attributes, content) => svg('text', attributes, content)
    const rows = Math.max(2, Math.floor((bottom - MARGIN.top) / 32))
    const columns = Math.max(2, Math.floor((right - MARGIN.left) / 70))
    const parts = (toggles.isLog ? logTicks(range, rows) : ticks(range, rows)).flatMap((value) => [
      svg('line', { x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
      text({ x: MARGIN.left - 5, y: y(value) + 3.5, 'text-anchor': 'end' }, compact(value)),
    ])
    for (const step of ticks([first, last], columns, true)) {
      parts.push(text({ x: x(step), y: bottom + 14, 'text-anchor': step === last ? 'end' : 'middle' }, step))
    }
    for (const { epoch, step } of epochMarks([first, last], series[0]?.stepsPerEpoch, columns)) {
      parts.push(svg('line', { class: 'wt-epoch', x1: x(step), x2: x(step), y1: MARGIN.top, y2: bottom }))
      parts.push(text({ x: x(step), y: MARGIN.top - 5, 'text-anchor': x(step) > right - 12 ? 'end' : 'middle' }, epoch))
    }
    parts.push(text({ x: 4, y: bottom + 14 }, t('chart.steps')), text({ x: 4, y: MARGIN.top - 5 }, t('chart.epochs')))
    if (yRate) {
      for (const value of ticks(rateRange, Math.min(rows, 4))) {
        parts.push(text({ class: 'wt-rate-text', x: right + 5, y: yRate(value) + 3.5 }, compact(value)))
      }
    }
    layers.grid.replaceChildren(...parts)
  }

  function lines({ part, heldOut = [], colour }, index, y, yRate) {
    const isOne = series.length === 1
    const stroke = `stroke: ${colourOf({ colour }, index)}`
    const heldStroke = isOne ? 'stroke: var(--wt-two)' : stroke
    const steps = heldOut.map(({ step }) => step)
    const losses = heldOut.map(({ loss }) => loss)
    return [
      isOne && svg('path', { class: 'wt-raw', d: band(part.step, part.low, part.high, x, y),
        style: `${stroke}; fill: ${colourOf({ colour }, index)}` }),
      yRate && svg('path', { class: 'wt-rate', d: line(part.step, part.rate, x, yRate), style: isOne ? '' : stroke }),
      svg('path', { class: 'wt-base', d: line(steps, heldOut.map((each) => each.base_loss), x, y), style: heldStroke }),
      svg('path', { class: 'wt-smooth', d: line(part.step, part.smooth, x, y), style: stroke }),
      svg('path', { class: 'wt-held', d: line(steps, losses, x, y), style: heldStroke }),
      // a line through one point is not seen
      heldOut.length === 1 &&
        svg('circle', { class: 'wt-held', cx: x(steps[0]), cy: y(losses[0]), r: 2.5, style: heldStroke }),
    ].filter(Boolean)
  }

  function drawMarks(inside, bottom) {
    if (layers.marks.matches(':active')) return // the mark that is pressed would be gone before the click
    const focused = layers.marks.querySelector(':focus')?.dataset.key
    const marks = series.flatMap((each, index) =>
      spread((each.checkpoints ?? []).filter(inside), x, MARK_GAP).map((checkpoint) => ({ each, index, checkpoint })))
    const keyOf = ({ each, checkpoint }) => `${each.run}/${checkpoint.step}`
    // one stop for Tab, from which arrow keys lead on
    const reached = marks.find((mark) => keyOf(mark) === focused) ?? marks.at(-1)
    layers.marks.replaceChildren(...marks.map((mark) => {
      const { step, best } = mark.checkpoint
      const name = t(best ? 'chart.checkpoint_best' : 'chart.checkpoint', { step })
      const act = () => oncheckpoint(mark.each, mark.checkpoint)
      return svg('g', { class: best ? 'wt-mark wt-best' : 'wt-mark', role: 'button', 'data-key': keyOf(mark),
        'aria-label': name, tabindex: mark === reached ? 0 : -1, onclick: act,
        onkeydown: (event) => onMarkKey(event, act), transform: `translate(${x(step).toFixed(1)} ${bottom})`,
        style: series.length > 1 ? `fill: ${colourOf(mark.each, mark.index)}` : '' },
      svg('title', {}, name), svg('rect', { x: -7, y: -9, width: 14, height: 18 }),
      svg('path', { d: best ? STAR : HANDLE }))
    }))
    if (focused) [...layers.marks.children].find((mark) => mark.dataset.key === focused)?.focus({ preventScroll: true })
  }

  function onMarkKey(event, act) {
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

  function point(step) {
    pointed = step
    drawCursor()
  }

  function drawCursor() {
    const [first, last] = shownSteps()
    const main = series[0] && shownCurve(series[0])
    const index = main && pointed !== null ? nearest(main.step, Math.min(last, Math.max(first, pointed))) : -1
    const step = index < 0 ? null : main.step[index]
    layers.cursor.replaceChildren(...(step === null ? [] : [svg('line', { x1: x(step), x2: x(step), y1: MARGIN.top,
      y2: layers.cursor.dataset.bottom })]))
    const items = legendItems(step)
    legend.replaceChildren(...items.map(({ name, value, kind, colour }) => el('span', { class: 'wt-item' },
      kind && el('i', { class: `wt-key wt-key-${kind}`, style: colour ? `color: ${colour}` : '' }), name, ' ',
      value && el('b', {}, value))))
    return items
  }

  function legendItems(step) {
    const [one] = series
    if (!one) return []
    const at = step ?? lastStep(one.curve)
    const epoch = epochOf(at, one.stepsPerEpoch)
    const items = [{ name: t('chart.step'), value: String(at) }]
    if (epoch) items.push({ name: t('chart.epoch'), value: String(epoch) })
    const valuesOf = (each) => {
      const curve = shownCurve(each)
      const index = nearest(curve.step, at)
      return { low: curve.low[index], high: curve.high[index], smooth: curve.smooth[index], rate: curve.rate[index] }
    }
    if (series.length > 1) {
      series.forEach((each, index) => items.push({ name: each.name, kind: 'smooth', colour: colourOf(each, index),
        value: at <= lastStep(each.curve) ? compact(valuesOf(each).smooth) : compact(each.curve.smooth.at(-1)) }))
      return items
    }
    const { low, high, smooth, rate } = valuesOf(one)
    const raw = low === high ? compact(low) : `${compact(low)}..${compact(high)}`
    items.push({ name: t('chart.loss'), kind: 'raw', value: raw })
    items.push({ name: t('chart.smooth'), kind: 'smooth', value: compact(smooth) })
    const held = (one.heldOut ?? []).filter((each) => each.step <= at).at(-1)
    if (held) {
      items.push({ name: t('chart.held_out'), kind: 'held', value: compact(held.loss) })
      items.push({ name: t('chart.base'), kind: 'base', value: compact(held.base_loss) })
    }
    if (toggles.hasRate || step !== null) {
      items.push({ name: t('chart.rate'), kind: toggles.hasRate && 'rate', value: compact(rate) })
    }
    return items
  }

  followPointer(plot, {
    stepAt: (pixel) => x.back(pixel),
    view: shownSteps,
    end,
    setView,
    point: (pixel) => point(pixel === null ? null : x.back(pixel)),
    pointNext(count) {
      if (!series.length) return
      const { step } = shownCurve(series[0])
      const [first, last] = shownSteps()
      const [from, to] = [nearest(step, first), nearest(step, last)]
      const isFirst = pointed === null && Math.abs(count) === 1
      const index = (pointed === null ? to : nearest(step, pointed)) + (isFirst ? 0 : count)
      pointed = step[Math.min(to, Math.max(from, index))] ?? null
      spoken.textContent = drawCursor().map(({ name, value }) => `${name} ${value}`).join(', ')
    },
    select(pixels) {
      const [from, to] = pixels ? [...pixels].sort((a, b) => a - b) : [0, 0]
      chosen.setAttribute('x', from)
      chosen.setAttribute('width', to - from)
    },
  })

  const observer = new ResizeObserver(() => requestAnimationFrame(draw))
  observer.observe(plot)

  return {
    element,
    show(next) {
      series = next
      draw()
    },
    redraw: draw,
    resetZoom: () => setView(null),
    destroy() {
      observer.disconnect()
      clearTimeout(told)
    },
  }
}
