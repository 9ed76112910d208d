// The line under the chart that says how to load the checkpoint that was clicked.

import { copyText } from '../shared/clipboard.js'
import { el } from '../shared/elements.js'
import { t } from '../shared/messages.js'

export class CheckpointLine {
  #run = null
  #chosen = null
  element = el('div', { class: 'wt-line wt-checkpoint', role: 'status' })

  choose(run, checkpoint) {
    this.#run = run
    this.#chosen = checkpoint
    this.#draw()
  }

  /** The present [{run, checkpoints}]: the chosen one may have been deleted, or be no longer the best. */
  show(runs) {
    const checkpoints = runs.find(({ run }) => run === this.#run)?.checkpoints ?? []
    this.choose(this.#run, checkpoints.find(({ step }) => step === this.#chosen?.step) ?? null)
  }

  #draw() {
    const [run, chosen] = [this.#run, this.#chosen]
    const key = chosen ? `${run}/${chosen.step}/${chosen.best}` : ''
    if (this.element.dataset.key === key) return
    this.element.dataset.key = key
    if (!chosen) return this.element.replaceChildren()
    const copy = el('button', { type: 'button', title: t('chart.copy_help'), onclick: async () => {
      if (await copyText(run)) copy.textContent = t('chart.copied')
      else letCopy(copy, run)
    } }, t('chart.copy'))
    const close = el('button', { type: 'button', 'aria-label': t('chart.close'), onclick: () => this.choose(this.#run, null) }, '\u2715')
    const words = t(chosen.best ? 'chart.checkpoint_best' : 'chart.checkpoint', { step: chosen.step })
    this.element.replaceChildren(el('div', { class: 'wt-grow' }, el('strong', {}, words), el('br'),
      t('chart.load_with', { run, step: chosen.step })), copy, close)
  }
}

/** Where the browser refuses to copy: the name in a selected field, and what to press. */
function letCopy(button, run) {
  const field = el('input', { readonly: true, 'aria-label': t('chart.copy_help'), value: run })
  button.replaceWith(el('label', {}, field, el('br'), t('chart.copy_by_hand')))
  field.select()
}
