// The chart of one run, or of several over each other, as SVG: for the panel of Train Wan LoRA and the run browser.

import { el, stylesheet, svg } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { axes } from './axes.js'
import { drawMarks } from './checkpoint_marks.js'
import { curves, stripLines } from './curves.js'
import { legendElement, legendItems } from './legend.js'
import { nearest } from './loss_series.js'
import { endOf, MARGIN, plotArea, shownCurve } from './plot_area.js'
import { followPointer } from './pointer.js'

const MILLISECONDS_OF_REST = 300

let made = 0

export class LossChart {
  #series = []
  #view = null // the window [first, last] of steps; null is all of them
  #pointed = null // a step
  #shown = { isLog: false, hasRate: false }
  #area = plotArea([], null, this.#shown, [0, 0])
  #told = 0 // the timer that calls onzoom
  #onzoom
  #oncheckpoint
  #svg = svgElements()
  #plot = el('div', { class: 'wt-plot', tabindex: 0, role: 'group', 'aria-roledescription': t('chart.chart'),
    'aria-label': t('chart.chart_label') }, this.#svg.root)
  #legend = el('div', { class: 'wt-legend' })
  #all = el('button', { type: 'button', title: t('chart.all_help'), onclick: () => this.resetZoom() }, t('chart.all'))
  #spoken = el('div', { class: 'wt-spoken', 'aria-live': 'polite' })
  #observer = new ResizeObserver(() => requestAnimationFrame(() => this.#draw()))

  /** onzoom(first, last) is called with the window of steps once it no longer changes, with 0, 0 for all steps;
   * oncheckpoint(series, checkpoint) with the mark that was clicked. */
  constructor({ onzoom = () => {}, oncheckpoint = () => {} } = {}) {
    stylesheet('chart/chart.css')
    this.#onzoom = onzoom
    this.#oncheckpoint = oncheckpoint
    // not on the plot itself, where a tooltip would hide what is pointed at
    const help = el('span', { class: 'wt-help', tabindex: 0, role: 'note', title: t('chart.chart_help'),
      'aria-label': t('chart.chart_help') }, '?')
    this.element = el('div', { class: 'wt-chart' }, this.#legend, this.#plot, el('div', { class: 'wt-row wt-tools' },
      this.#toggle('isLog', 'log'), this.#toggle('hasRate', 'rate'), this.#all, help), this.#spoken)
    followPointer(this.#plot, {
      stepAt: (pixel) => this.#area.x.back(pixel),
      view: () => this.#steps(),
      end: () => endOf(this.#series),
      setView: (view) => this.#setView(view),
      point: (pixel) => this.#point(pixel === null ? null : this.#area.x.back(pixel)),
      pointNext: (count) => this.#pointNext(count),
      select: (pixels) => this.#select(pixels),
    })
    this.#observer.observe(this.#plot)
  }

  /**
   * [{run, name, colour, curve, detail, heldOut, checkpoints, stepsPerEpoch}]: `curve` as loss_series.js describes it
   * (fromAnswer of GET /wantune/runs/{run}), `heldOut` evaluations as meters.js describes them, `checkpoints` [{step, best}]; colour
   * and detail may be left out. `detail` {first, last, curve} is drawn instead of the curve while the window lies in
   * first..last.
   */
  show(series) {
    this.#series = series
    this.#draw()
  }

  resetZoom() {
    this.#setView(null)
  }

  destroy() {
    this.#observer.disconnect()
    clearTimeout(this.#told)
  }

  #toggle(name, key) {
    return el('button', { type: 'button', 'aria-pressed': 'false', title: t(`chart.${key}_help`), onclick: (event) => {
      this.#shown[name] = !this.#shown[name]
      event.currentTarget.setAttribute('aria-pressed', this.#shown[name])
      this.#draw()
    } }, t(`chart.${key}`))
  }

  #steps() {
    return this.#view ?? [0, endOf(this.#series)]
  }

  #setView(view) {
    this.#view = view
    this.#draw()
    clearTimeout(this.#told)
    this.#told = setTimeout(() => this.#onzoom(...(this.#view ?? [0, 0])), MILLISECONDS_OF_REST)
  }

  #draw() {
    const [width, height] = [this.#plot.clientWidth, this.#plot.clientHeight]
    if (width < 80 || height < 60) return
    if (this.#view && this.#view[1] > endOf(this.#series)) this.#view = null
    const area = (this.#area = plotArea(this.#series, this.#view, this.#shown, [width, height]))
    const { root, clipped, clippedStrip, chosen, grid, lines, strip, marks } = this.#svg
    const inner = { x: MARGIN.left, y: MARGIN.top, width: area.right - MARGIN.left, height: area.bottom - MARGIN.top }
    root.setAttribute('viewBox', `0 0 ${width} ${height}`)
    for (const [name, value] of Object.entries(inner)) clipped.setAttribute(name, value)
    const below = area.strip ? { ...inner, y: area.strip.top - 2, height: area.foot - area.strip.top + 4 } : inner
    for (const [name, value] of Object.entries(below)) clippedStrip.setAttribute(name, value)
    this.#plot.classList.toggle('wt-with-strip', Boolean(area.strip)) // higher, which draws it again
    chosen.setAttribute('height', area.foot - MARGIN.top)
    grid.replaceChildren(...axes(area, this.#shown.isLog, this.#series[0]?.stepsPerEpoch))
    lines.replaceChildren(...curves(this.#series, area))
    strip.replaceChildren(...(area.strip ? stripLines(this.#series, area) : []))
    drawMarks(marks, this.#series, area, this.#oncheckpoint)
    this.#all.disabled = !this.#view
    this.#drawCursor()
  }

  /** Draws the line at the pointed step, and the legend; returns the legend's items. */
  #drawCursor() {
    const [first, last] = this.#steps()
    const { x, foot } = this.#area
    const main = this.#series[0] && shownCurve(this.#series[0], this.#view)
    const index = main && this.#pointed !== null
      ? nearest(main.step, Math.min(last, Math.max(first, this.#pointed))) : -1
    const step = index < 0 ? null : main.step[index]
    this.#svg.cursor.replaceChildren(...(step === null ? []
      : [svg('line', { x1: x(step), x2: x(step), y1: MARGIN.top, y2: foot })]))
    const items = legendItems(this.#series, this.#view, step, this.#shown.hasRate)
    this.#legend.replaceChildren(...items.map(legendElement))
    return items
  }

  #point(step) {
    this.#pointed = step
    this.#drawCursor()
  }

  #pointNext(count) {
    if (!this.#series.length) return
    const { step } = shownCurve(this.#series[0], this.#view)
    const [from, to] = this.#steps().map((each) => nearest(step, each))
    const isFirst = this.#pointed === null && Math.abs(count) === 1
    const index = (this.#pointed === null ? to : nearest(step, this.#pointed)) + (isFirst ? 0 : count)
    this.#pointed = step[Math.min(to, Math.max(from, index))] ?? null
    this.#spoken.textContent = this.#drawCursor().map(({ name, value }) => `${name} ${value}`).join(', ')
  }

  #select(pixels) {
    const [from, to] = pixels ? [...pixels].sort((a, b) => a - b) : [0, 0]
    this.#svg.chosen.setAttribute('x', from)
    this.#svg.chosen.setAttribute('width', to - from)
  }
}

/** The layers of the drawing in `root`; `chosen` is the box being dragged, `clipped` and `clippedStrip` the rectangles that
 * clip the lines of losses and of the strip below them. */
function svgElements() {
  const [grid, lines, strip, cursor, marks] = ['grid', 'lines', 'lines', 'cursor', 'marks'].map((name) => svg('g', { class: `wt-${name}` }))
  const [clipped, clippedStrip] = [svg('rect'), svg('rect')]
  const clips = [[lines, clipped], [strip, clippedStrip]].map(([layer, rectangle]) => {
    const id = `wt-clip-${made++}` // ids must be unique in the whole page
    layer.setAttribute('clip-path', `url(#${id})`)
    return svg('clipPath', { id }, rectangle)
  })
  const chosen = svg('rect', { class: 'wt-chosen', y: MARGIN.top })
  const root = svg('svg', {}, svg('defs', {}, ...clips), grid, lines, strip, chosen, cursor, marks)
  return { root, clipped, clippedStrip, chosen, grid, lines, strip, cursor, marks }
}
