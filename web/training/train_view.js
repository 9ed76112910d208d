// The elements of the panel in Train Wan LoRA: state, progress, chart, numbers and previews of a run, or a hint. Of a pair
// the chart has both, and all else is of the run that is computed.

import { el, stylesheet } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { LossChart } from '../chart/loss_chart.js'
import { verdict } from '../chart/meters.js'
import { CheckpointLine } from './checkpoint_line.js'
import { PreviewStrip } from './preview_strip.js'
import { condition, expertOf, figures, outcome, position, presentOf } from './run_state.js'

const say = ({ key, values }) => t(key, values)

const nameOf = (run) => (run.expert ? say(expertOf(run)) : run.name)

/** How a run ended, and its notes; of a pair it is said of which expert. */
function lineOf(run) {
  const ended = outcome(run)
  const words = [...(ended ? [say(ended)] : []), ...run.notes].join(' ')
  return run.expert && words ? `${nameOf(run)}: ${words}` : words
}

/** What its held-out files say; of a pair it is said of which expert. */
function verdictOf(run) {
  const found = verdict(run.heldOut, run.state === 'running')
  if (!found) return ''
  const words = t('chart.verdict', { meters: say(found.meters), says: say(found.says) })
  return run.expert ? `${nameOf(run)}: ${words}` : words
}

/** Sets a text only where it changes, so that screen readers do not read it again. */
function write(target, words) {
  if (target.textContent !== words) target.textContent = words
}

export class TrainView {
  #element
  #runs = ''
  #hint = el('div', { class: 'wt-hint wt-faint' })
  #state = el('span', { class: 'wt-state' })
  #where = el('span', { class: 'wt-where' })
  #stop
  #progress = el('progress', { 'aria-label': t('chart.progress') })
  #numbers = el('dl', { class: 'wt-figures' })
  #chart
  #verdict = el('div', { class: 'wt-line wt-verdict', role: 'status', title: t('chart.verdict_help') })
  #checkpoint = new CheckpointLine()
  #line = el('div', { class: 'wt-line', role: 'status' })
  #strip = new PreviewStrip()
  #body

  /** Fills `element`; onstop() is called by Stop & use, onzoom(first, last) as in LossChart. */
  constructor(element, { onstop, onzoom }) {
    stylesheet('training/training.css')
    this.#element = element
    this.#stop = el('button', { type: 'button', class: 'wt-stop', title: t('chart.stop_help'), onclick: onstop },
      t('chart.stop'))
    this.#chart = new LossChart({ onzoom, oncheckpoint: ({ run }, checkpoint) => this.#checkpoint.choose(run, checkpoint) })
    this.#body = el('div', { class: 'wt-body' },
      el('div', { class: 'wt-row wt-head' }, this.#state, this.#where, this.#stop), this.#progress,
      el('div', { class: 'wt-middle' }, this.#chart.element, this.#numbers), this.#verdict, this.#checkpoint.element, this.#line,
      this.#strip.element)
  }

  /** Shows runs as run_state.js describes them, a hint for none; `details` by run, each as in LossChart.show(). */
  show(runs, details, error) {
    const run = presentOf(runs)
    if (!run) return this.#showHint(error)
    if (!this.#body.isConnected) this.#element.replaceChildren(this.#body)
    const shown = runs.map((each) => each.run).join()
    if (this.#runs !== shown) {
      this.#runs = shown
      this.#chart.resetZoom()
    }
    this.#showState(run)
    const faults = runs.flatMap((each) => each.faults)
    const wrong = error || faults.join(' ')
    this.#line.classList.toggle('wt-error', Boolean(wrong))
    write(this.#line, wrong || runs.map(lineOf).filter(Boolean).join(' '))
    this.#chart.show(runs.map((each) => ({ ...each, detail: details[each.run], name: nameOf(each) })))
    write(this.#verdict, runs.map(verdictOf).filter(Boolean).join(' '))
    this.#checkpoint.show(runs)
    this.#strip.show(run.run, run.previews)
  }

  destroy() {
    this.#chart.destroy()
    this.#strip.destroy()
  }

  #showHint(error) {
    this.#hint.classList.toggle('wt-error', Boolean(error))
    write(this.#hint, error || t('chart.hint'))
    if (!this.#hint.isConnected) this.#element.replaceChildren(this.#hint)
  }

  #showState(run) {
    const isRunning = run.state === 'running'
    const expert = expertOf(run)
    write(this.#state, expert ? `${say(expert)}: ${say(condition(run))}` : say(condition(run)))
    this.#state.dataset.state = run.state
    write(this.#where, say(position(run)))
    this.#stop.hidden = !isRunning
    this.#stop.disabled = run.isStopping
    write(this.#stop, t(run.isStopping ? 'chart.state_stopping' : 'chart.stop'))
    this.#progress.max = Math.max(1, run.totalSteps)
    this.#progress.value = run.step
    this.#numbers.hidden = !isRunning
    this.#numbers.replaceChildren(...figures(run).map(({ name, value }) =>
      el('div', {}, el('dt', {}, say(name)), el('dd', {}, value?.key ? say(value) : value ?? '-'))))
  }
}
