// The face of Train Wan LoRA: chart, numbers, previews, and Stop & use. What it shows is the server's; nothing is kept.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { el, stylesheet } from '../shared/elements.js'
import { ready, t } from '../shared/messages.js'
import { addPanel, isAbout, nodeKey, whenPlaced } from '../shared/panel.js'
import { redrawing } from '../shared/redrawing.js'
import { get, post } from '../shared/server.js'
import { createChart } from '../chart/loss_chart.js'
import { fromAnswer as curveOf, lastStep, MOST_POINTS } from '../chart/loss_series.js'
import { createPreviewStrip } from './preview_strip.js'
import { condition, figures, fromAnswer, heard, outcome, position } from './run_state.js'

const NODE = 'WanTune_TrainWanLoRA'
const HEIGHT = 440
const MILLISECONDS_BETWEEN_ASKING = 1000
const MILLISECONDS_OF_SILENCE = 10000
const MESSAGES = ['started', 'step', 'evaluated', 'saved', 'previewed', 'finished', 'ended']
const ENDINGS = ['reconnected', 'execution_success', 'execution_interrupted', 'execution_error']

/** What is to be told of the server's messages: one entry a node. */
const panels = new Set()

// from the beginning, not only while there is a panel: ComfyUI warns of messages nobody listens to
for (const name of MESSAGES) {
  api.addEventListener(`wantune.${name}`, ({ detail: message }) => panels.forEach((panel) => panel.hear(name, message)))
}
for (const name of ENDINGS) api.addEventListener(name, () => panels.forEach((panel) => panel.ask()))

app.registerExtension({
  name: 'WanTune.train_panel',
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const element = el('div', { class: 'wt-train' })
    addPanel(node, 'wantune_training', element, HEIGHT)
    ready.then(() => whenPlaced(node, () => follow(node, element)))
  },
})

const say = ({ key, values }) => t(key, values)

function follow(node, element) {
  stylesheet('training/training.css')
  const view = createView(element, { onstop: stop, onzoom: zoom })
  let state = null
  let detail = null
  let zoomWindow = null
  let error = ''
  let isDestroyed = false
  const screen = redrawing(element, () => view.show(state, detail, error), () => { if (isStale) ask() })

  // one question at a time, and not more than one a second; what comes up meanwhile is asked afterwards
  let isStale = true
  let isAsking = false
  let timer = 0
  let asked = 0
  let heardAt = 0

  function ask() {
    isStale = true
    if (isAsking || timer || isDestroyed || !screen.isVisible()) return
    timer = setTimeout(load, Math.max(0, asked + MILLISECONDS_BETWEEN_ASKING - performance.now()))
  }

  async function load() {
    timer = 0
    isAsking = true
    isStale = false
    asked = performance.now()
    try {
      const runName = node.widgets?.find((widget) => widget.name === 'run_name')?.value
      const { run } = await get('node', { ...nodeKey(node), run_name: runName })
      const answer = run && await get(`runs/${encodeURIComponent(run)}`, { points: MOST_POINTS })
      if (run !== state?.run) detail = null
      state = answer ? fromAnswer(answer) : null
      error = ''
    } catch (problem) {
      error = problem.message
    }
    isAsking = false
    screen.now()
    if (isStale) ask()
  }

  async function zoom(first, last) {
    zoomWindow = last ? [first, last] : null
    if (!state || !zoomWindow || lastStep(state.curve) <= MOST_POINTS) return
    const { run } = state
    // a little more on either side, so that the lines go on to the edges
    const margin = Math.ceil((last - first) / 20)
    const range = { first: Math.max(1, first - margin), last: last + margin }
    const answer = await get(`runs/${encodeURIComponent(run)}`, { points: MOST_POINTS, ...range }).catch(() => null)
    if (!answer || state?.run !== run || zoomWindow?.[0] !== first || zoomWindow?.[1] !== last) return
    detail = { first, last, curve: curveOf(answer) }
    screen.now()
  }

  async function stop() {
    if (!state) return
    state = { ...state, isStopping: true }
    screen.now()
    try {
      const { stopping } = await post('stop', { run: state.run })
      if (!stopping) ask()
    } catch (problem) {
      error = problem.message
      state = { ...state, isStopping: false }
    }
    screen.now()
  }

  function hear(name, message) {
    // a second browser has the graph under an id of its own, but shows the same run
    if (!isAbout(message, node) && message.run !== state?.run) return
    heardAt = performance.now()
    const next = heard(state, name, message)
    state = next.state
    screen.ask()
    if (next.ask) ask()
  }

  const panel = { hear, ask }
  panels.add(panel)
  const silence = setInterval(() => {
    if (state?.state === 'running' && performance.now() - heardAt > MILLISECONDS_OF_SILENCE) ask()
  }, MILLISECONDS_OF_SILENCE)

  const nameWidget = node.widgets?.find((widget) => widget.name === 'run_name')
  if (nameWidget) {
    const callback = nameWidget.callback
    nameWidget.callback = function (...given) {
      const result = callback?.apply(this, given)
      ask()
      return result
    }
  }

  const onRemoved = node.onRemoved
  node.onRemoved = function (...given) {
    isDestroyed = true
    clearTimeout(timer)
    clearInterval(silence)
    panels.delete(panel)
    screen.stop()
    view.destroy()
    return onRemoved?.apply(this, given)
  }
  screen.ask()
}

function createView(element, { onstop, onzoom }) {
  const state = el('span', { class: 'wt-state' })
  const where = el('span', { class: 'wt-where' })
  const stop = el('button', { type: 'button', class: 'wt-stop', title: t('chart.stop_help'), onclick: onstop },
    t('chart.stop'))
  const progress = el('progress', { 'aria-label': t('chart.progress') })
  const numbers = el('dl', { class: 'wt-figures' })
  const chart = createChart({ onzoom, oncheckpoint: (_series, checkpoint) => {
    chosen = checkpoint
    showCheckpoint()
  } })
  const checkpointLine = el('div', { class: 'wt-line wt-checkpoint', role: 'status' })
  const line = el('div', { class: 'wt-line', role: 'status' })
  const strip = createPreviewStrip()
  const body = el('div', { class: 'wt-body' },
    el('div', { class: 'wt-row wt-head' }, state, where, stop), progress,
    el('div', { class: 'wt-middle' }, chart.element, numbers), checkpointLine, line, strip.element)
  const hint = el('div', { class: 'wt-hint wt-faint' })
  let chosen = null
  let run = null

  const write = (target, words) => { if (target.textContent !== words) target.textContent = words }

  function show(now, detail, error) {
    if (!now) {
      hint.classList.toggle('wt-error', Boolean(error))
      write(hint, error || t('chart.hint'))
      if (!hint.isConnected) element.replaceChildren(hint)
      return
    }
    if (!body.isConnected) element.replaceChildren(body)
    if (run !== now.run) {
      run = now.run
      chosen = null
      chart.resetZoom()
    }
    const isRunning = now.state === 'running'
    write(state, say(condition(now)))
    state.dataset.state = now.state
    write(where, say(position(now)))
    stop.hidden = !isRunning
    stop.disabled = now.isStopping
    write(stop, t(now.isStopping ? 'chart.state_stopping' : 'chart.stop'))
    progress.max = Math.max(1, now.totalSteps)
    progress.value = now.step
    numbers.hidden = !isRunning
    numbers.replaceChildren(...figures(now).map(({ name, value }) =>
      el('div', {}, el('dt', {}, say(name)), el('dd', {}, value?.key ? say(value) : value ?? '-'))))
    const ended = outcome(now)
    line.classList.toggle('wt-error', Boolean(error))
    write(line, error || (ended ? say(ended) : ''))
    chart.show([{ ...now, detail }])
    // it may have been deleted since, or be the best no longer
    chosen = now.checkpoints.find(({ step }) => step === chosen?.step) ?? null
    showCheckpoint()
    strip.show(now.run, now.previews)
  }

  function showCheckpoint() {
    const key = chosen ? `${run}/${chosen.step}/${chosen.best}` : ''
    if (checkpointLine.dataset.key === key) return
    checkpointLine.dataset.key = key
    if (!chosen) return checkpointLine.replaceChildren()
    const copy = el('button', { type: 'button', title: t('chart.copy_help'), onclick: async () => {
      await navigator.clipboard?.writeText(run)
      copy.textContent = t('chart.copied')
    } }, t('chart.copy'))
    const close = el('button', { type: 'button', 'aria-label': t('chart.close'), onclick: () => {
      chosen = null
      showCheckpoint()
    } }, '\u2715')
    const words = t(chosen.best ? 'chart.checkpoint_best' : 'chart.checkpoint', { step: chosen.step })
    checkpointLine.replaceChildren(el('div', { class: 'wt-grow' }, el('strong', {}, words), el('br'),
      t('chart.load_with', { run, step: chosen.step })), copy, close)
  }

  return {
    show,
    destroy() {
      chart.destroy()
      strip.destroy()
    },
  }
}
