// The sidebar tab with all runs: compares their loss curves, loads their LoRAs, continues and deletes runs.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { el, stylesheet } from '../shared/elements.js'
import { ready, t } from '../shared/messages.js'
import { get, media, pathOfRun, post } from '../shared/server.js'
import { COLOURS } from '../chart/curves.js'
import { LossChart } from '../chart/loss_chart.js'
import { fromAnswer as curveOf } from '../chart/loss_series.js'
import { addLoadRunLora, confirmDeletion, openWorkflow } from './run_actions.js'
import { runItem } from './run_item.js'
import { filtered, isFormer, ORDER_NAMES, sorted, stillThere, toggled } from './run_list.js'

const MESSAGES = ['started', 'saved', 'previewed', 'finished', 'ended']

app.registerExtension({
  name: 'WanTune.run_browser',
  async setup() {
    await ready
    let browser
    app.extensionManager.registerSidebarTab({
      id: 'wantune-runs',
      icon: 'pi pi-chart-line',
      title: t('runs.tab'),
      label: t('runs.tab'),
      tooltip: t('runs.tooltip'),
      type: 'custom',
      render(container) {
        browser?.close() // ComfyUI may render a tab again without having called destroy
        browser = new RunBrowser(container)
      },
      destroy: () => browser?.close()
    })
  }
})

class RunBrowser {
  #runs = []
  #chosen = [] // names of the runs whose curves are shown, in the order of their colours
  #order = 'date'
  #pictures = new Map() // promises of blob: URLs, by run and file
  #closing = new AbortController()
  #chart = new LossChart()
  #overlay = el('div', { class: 'wt-overlay', hidden: true }, this.#chart.element)
  #words = el('input', { type: 'search', placeholder: t('runs.filter'), 'aria-label': t('runs.filter'),
    oninput: () => this.#draw() })
  #line = el('div', { class: 'wt-line', role: 'status' })
  #list = el('ul', { class: 'wt-runs', 'aria-label': t('runs.tab') })

  constructor(container) {
    stylesheet('shared/style.css')
    stylesheet('runs/runs.css')
    const orders = el('select', { 'aria-label': t('runs.order'), onchange: () => {
      this.#order = orders.value
      this.#draw()
    } }, ...ORDER_NAMES.map((name) => el('option', { value: name }, t(`runs.by_${name}`))))
    const refresh = el('button', { type: 'button', title: t('runs.refresh'), 'aria-label': t('runs.refresh'),
      onclick: () => this.#load() }, '\u21bb')
    container.replaceChildren(el('div', { class: 'wantune wt-browser' },
      el('div', { class: 'wt-row wt-tools' }, this.#words, orders, refresh), this.#overlay, this.#line, this.#list))
    const { signal } = this.#closing
    for (const name of MESSAGES) api.addEventListener(`wantune.${name}`, () => this.#load(), { signal })
    this.#load()
  }

  close() {
    this.#closing.abort()
    this.#chart.destroy()
    for (const address of this.#pictures.values()) address.then((source) => URL.revokeObjectURL(source), () => {})
  }

  #say(text, isError = false) {
    this.#line.textContent = text
    this.#line.classList.toggle('wt-error', isError)
  }

  async #load() {
    try {
      this.#runs = (await get('runs', {}, this.#closing.signal)).runs
    } catch (error) {
      if (!this.#closing.signal.aborted) this.#say(error.message, true)
      return
    }
    this.#chosen = stillThere(this.#chosen, this.#runs)
    this.#say(this.#runs.length ? '' : t('runs.none'))
    this.#draw()
    this.#overlayCurves()
  }

  #draw() {
    const shown = sorted(filtered(this.#runs, this.#words.value), this.#order)
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.dataset.key : null
    this.#list.replaceChildren(...shown.map((run) => this.#item(run)))
    if (focused) this.#list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus()
  }

  #item(run) {
    const colour = COLOURS[this.#chosen.indexOf(run.run)] ?? null
    return runItem(run, colour, this.#picture(run), {
      compare: () => {
        this.#chosen = toggled(this.#chosen, run.run)
        this.#draw()
        this.#overlayCurves()
      },
      use: (step) => {
        if (addLoadRunLora(run.run, step)) this.#say(t('runs.used', { name: run.name, step }))
        else this.#say(t('runs.no_node'), true)
      },
      goOn: () => this.#goOn(run),
      remove: () => this.#remove(run),
    })
  }

  #picture({ run, thumbnail }) {
    if (!thumbnail) return el('div', { class: 'wt-thumb' })
    const image = el('img', { class: 'wt-thumb', alt: '', loading: 'lazy' })
    const key = `${run}/${thumbnail}`
    if (!this.#pictures.has(key)) {
      this.#pictures.set(key, media(pathOfRun(run, 'file'), { name: thumbnail }, this.#closing.signal))
    }
    this.#pictures.get(key).then((source) => { image.src = source }, () => this.#pictures.delete(key))
    return image
  }

  async #overlayCurves() {
    const wanted = this.#chosen
    const { signal } = this.#closing
    this.#overlay.hidden = !wanted.length
    if (!wanted.length) return
    const answers = await Promise.all(wanted.map((run) => get(pathOfRun(run), {}, signal).catch(() => null)))
    if (wanted !== this.#chosen || signal.aborted) return
    this.#chart.show(answers.flatMap((answer, index) => (answer ? [{ run: answer.run, name: answer.name,
      curve: curveOf(answer), colour: COLOURS[index], heldOut: answer.held_out, checkpoints: [],
      stepsPerEpoch: answer.steps_per_epoch }] : [])))
  }

  async #goOn(run) {
    try {
      await openWorkflow(await get(pathOfRun(run.run, 'workflow'), {}, this.#closing.signal), run.run,
        isFormer(run, this.#runs) ? run.attempt : 0)
      this.#say(t(run.continues_from === null ? 'runs.opened_done' : 'runs.opened', { step: run.continues_from }))
    } catch (error) {
      this.#say(error.message, true)
    }
  }

  async #remove(run) {
    const question = t('runs.delete_question', { run: run.run, count: run.checkpoints.length })
    if (!(await confirmDeletion(t('runs.delete_title'), question, run.run))) return
    try {
      await post(pathOfRun(run.run, 'delete'))
      await this.#load()
      this.#say(t('runs.deleted', { run: run.run }))
    } catch (error) {
      this.#say(error.message, true)
    }
  }
}
