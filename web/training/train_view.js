// The elements of the panel in Train Wan LoRA: a run's state, progress, chart, numbers and previews, or a hint.

import { el, stylesheet } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { LossChart } from '../chart/loss_chart.js'
import { CheckpointLine } from './checkpoint_line.js'
import { PreviewStrip } from './preview_strip.js'
import { condition, figures, outcome, position } from './run_state.js'

const say = ({ key, values }) => t(key, values)

/** Sets a text only where it changes, so that screen readers do not read it again. */
function write(target, words) {
  if (target.textContent !== words) target.textContent = words
}

export class TrainView {
  #element
  #run = null
  #hint = el('div', { class: 'wt-hint wt-faint' })
  #state = el('span', { class: 'wt-state' })
  #where = el('span', { class: 'wt-where' })
  #stop
  #progress = el('progress', { 'aria-label': t('chart.progress') })
  #numbers = el('dl', { class: 'wt-figures' })
  #chart
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
    this.#chart = new LossChart({ onzoom, oncheckpoint: (_series, checkpoint) => this.#checkpoint.choose(checkpoint) })
    this.#body = el('div', { class: 'wt-body' },
      el('div', { class: 'wt-row wt-head' }, this.#state, this.#where, this.#stop), this.#progress,
      el('div', { class: 'wt-middle' }, this.#chart.element, this.#numbers), this.#checkpoint.element, this.#line,
      this.#strip.element)
  }

  /** Shows a run as run_state.js describes it, or a hint for null; `detail` as in LossChart.show(). */
  show(run, detail, error) {
    if (!run) return this.#showHint(error)
    if (!this.#body.isConnected) this.#element.replaceChildren(this.#body)
    if (this.#run !== run.run) {
      this.#run = run.run
      this.#chart.resetZoom()
    }
    this.#showState(run)
    const ended = outcome(run)
    const wrong = error || run.faults.join(' ')
    this.#line.classList.toggle('wt-error', Boolean(wrong))
    write(this.#line, wrong || [...(ended ? [say(ended)] : []), ...run.notes].join(' '))
    this.#chart.show([{ ...run, detail }])
    this.#checkpoint.show(run.run, run.checkpoints)
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
    write(this.#state, say(condition(run)))
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
