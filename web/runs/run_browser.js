// The sidebar tab with all runs: their curves over each other, their LoRAs, going on with one, deleting one.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { el, stylesheet } from '../shared/elements.js'
import { ready, t } from '../shared/messages.js'
import { compact } from '../shared/number_text.js'
import { get, media, post } from '../shared/server.js'
import { COLOURS, createChart } from '../chart/loss_chart.js'
import { fromAnswer as curveOf } from '../chart/loss_series.js'
import { described, filtered, offered, ORDER_NAMES, sorted, stillThere, toggled } from './run_list.js'

const MESSAGES = ['started', 'saved', 'previewed', 'finished', 'ended']

app.registerExtension({
  name: 'WanTune.run_browser',
  async setup() {
    await ready
    let close = () => {}
    app.extensionManager.registerSidebarTab({
      id: 'wantune-runs',
      icon: 'pi pi-chart-line',
      title: t('runs.tab'),
      label: t('runs.tab'),
      tooltip: t('runs.tooltip'),
      type: 'custom',
      render(container) {
        close() // a page may show a tab again without having said that it was closed
        close = open(container)
      },
      destroy: () => close()
    })
  }
})

function open(container) {
  stylesheet('shared/style.css')
  stylesheet('runs/runs.css')
  let runs = []
  let chosen = []
  let order = 'date'
  const pictures = new Map() // by run and file
  const closing = new AbortController()
  const chart = createChart()
  const overlay = el('div', { class: 'wt-overlay', hidden: true }, chart.element)
  const words = el('input', { type: 'search', placeholder: t('runs.filter'), 'aria-label': t('runs.filter'), oninput: draw })
  const orders = el('select', { 'aria-label': t('runs.order'), onchange: () => { order = orders.value; draw() } },
    ...ORDER_NAMES.map((name) => el('option', { value: name }, t(`runs.by_${name}`))))
  const refresh = el('button', { type: 'button', title: t('runs.refresh'), 'aria-label': t('runs.refresh'), onclick: load }, '\u21bb')
  const line = el('div', { class: 'wt-line', role: 'status' })
  const list = el('ul', { class: 'wt-runs', 'aria-label': t('runs.tab') })
  container.replaceChildren(el('div', { class: 'wantune wt-browser' },
    el('div', { class: 'wt-row wt-tools' }, words, orders, refresh), overlay, line, list))

  function say(text, isError = false) {
    line.textContent = text
    line.classList.toggle('wt-error', isError)
  }

  async function load() {
    try {
      runs = (await get('runs', {}, closing.signal)).runs
    } catch (error) {
      if (!closing.signal.aborted) say(error.message, true)
      return
    }
    chosen = stillThere(chosen, runs)
    say(runs.length ? '' : t('runs.none'))
    draw()
    overlayCurves()
  }

  function draw() {
    const shown = sorted(filtered(runs, words.value), order)
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null
    list.replaceChildren(...shown.map(item))
    if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus()
  }

  function item(run) {
    const index = chosen.indexOf(run.run)
    const step = offered(run)
    const key = (name) => ({ type: 'button', 'data-key': `${name} ${run.run}` })
    const compare = el('input', { type: 'checkbox', 'data-key': `compare ${run.run}`, checked: index >= 0,
      'aria-label': t('runs.compare', { name: run.name }), title: t('runs.compare', { name: run.name }),
      style: index >= 0 ? `accent-color: ${COLOURS[index]}` : false,
      onchange: () => { chosen = toggled(chosen, run.run); draw(); overlayCurves() } })
    return el('li', { class: 'wt-run', title: run.run },
      picture(run),
      el('div', { class: 'wt-about' },
        el('div', { class: 'wt-row' }, el('label', { class: 'wt-row' }, compare, el('strong', {}, run.name)),
          el('span', { class: 'wt-state', 'data-state': run.state }, t(`runs.state_${run.state.replace(' ', '_')}`))),
        el('div', { class: 'wt-faint' }, new Date(run.updated * 1000).toLocaleString(), run.base && ` \u00b7 ${run.base}`),
        el('div', { class: 'wt-faint' }, described(run, compact).map(([name, values]) => t(name, values)).join(' \u00b7 ')),
        el('div', { class: 'wt-row' },
          el('button', { ...key('use'), disabled: step === null, title: t('runs.use_help'), onclick: () => useLora(run, step) },
            t('runs.use')),
          el('button', { ...key('continue'), disabled: !run.has_workflow, title: t('runs.continue_help'),
            onclick: () => goOn(run) }, t('runs.continue')),
          el('button', { ...key('delete'), disabled: run.state === 'running', onclick: () => remove(run) }, t('runs.delete')))))
  }

  function picture(run) {
    const image = el('img', { class: 'wt-thumb', alt: '', loading: 'lazy' })
    if (!run.thumbnail) return el('div', { class: 'wt-thumb' })
    const key = `${run.run}/${run.thumbnail}`
    const address = pictures.get(key) ?? media(`runs/${encodeURIComponent(run.run)}/file`, { name: run.thumbnail }, closing.signal)
    pictures.set(key, address)
    Promise.resolve(address).then((source) => { image.src = source }, () => pictures.delete(key))
    return image
  }

  async function overlayCurves() {
    const wanted = chosen
    overlay.hidden = !wanted.length
    if (!wanted.length) return
    const answers = await Promise.all(wanted.map((run) =>
      get(`runs/${encodeURIComponent(run)}`, {}, closing.signal).catch(() => null)))
    if (wanted !== chosen || closing.signal.aborted) return
    chart.show(answers.flatMap((answer, index) => (answer ? [{ run: answer.run, name: answer.name, curve: curveOf(answer),
      colour: COLOURS[index], heldOut: answer.held_out, checkpoints: [], stepsPerEpoch: answer.steps_per_epoch }] : [])))
  }

  async function goOn(run) {
    try {
      const { workflow, prompt } = await get(`runs/${encodeURIComponent(run.run)}/workflow`, {}, closing.signal)
      // under a name of its own it becomes a tab of its own, so that nothing unsaved is lost
      if (workflow) await app.loadGraphData(workflow, true, true, run.run)
      else await app.loadApiJson(prompt, run.run)
      say(t(run.continues_from === null ? 'runs.opened_done' : 'runs.opened', { step: run.continues_from }))
    } catch (error) {
      say(error.message, true)
    }
  }

  function useLora(run, step) {
    const node = window.LiteGraph.createNode('WanTune_LoadRunLoRA')
    if (!node) return say(t('runs.no_node'), true)
    for (const [name, value] of [['run', run.run], ['checkpoint', String(step)]]) {
      const widget = node.widgets.find((each) => each.name === name)
      widget.value = value
      widget.callback?.(value)
    }
    const { canvas } = app
    const [left, top, width, height] = canvas.visible_area
    node.pos = [left + width / 2 - node.size[0] / 2, top + height / 2 - node.size[1] / 2]
    const graph = canvas.graph ?? app.graph
    graph.add(node)
    canvas.selectNode?.(node)
    say(t('runs.used', { name: run.name, step }))
  }

  async function remove(run) {
    const message = t('runs.delete_question', { run: run.run, count: run.checkpoints.length })
    const dialog = app.extensionManager.dialog
    const isSure = dialog?.confirm
      ? await dialog.confirm({ title: t('runs.delete_title'), message, type: 'delete', itemList: [run.run] })
      : window.confirm(message)
    if (!isSure) return
    try {
      await post(`runs/${encodeURIComponent(run.run)}/delete`)
      await load()
      say(t('runs.deleted', { run: run.run }))
    } catch (error) {
      say(error.message, true)
    }
  }

  for (const name of MESSAGES) api.addEventListener(`wantune.${name}`, load, { signal: closing.signal })
  load()

  return () => {
    closing.abort()
    chart.destroy()
    for (const address of pictures.values()) Promise.resolve(address).then((source) => URL.revokeObjectURL(source), () => {})
  }
}
