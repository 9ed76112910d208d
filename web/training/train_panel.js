// The panel in Train Wan LoRA: chart, numbers, previews, and Stop & use. All it shows comes from the server.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { after } from '../shared/callbacks.js'
import { el } from '../shared/elements.js'
import { ready } from '../shared/messages.js'
import { addPanel, isAbout, nodeKey, whenPlaced } from '../shared/panel.js'
import { redrawing } from '../shared/redrawing.js'
import { get, pathOfRun, post } from '../shared/server.js'
import { fromAnswer as curveOf, lastStep, MOST_POINTS } from '../chart/loss_series.js'
import { fromAnswer, heard } from './run_state.js'
import { TrainView } from './train_view.js'

const NODE = 'WanTune_TrainWanLoRA'
const HEIGHT = 440
const MILLISECONDS_BETWEEN_ASKING = 1000
const MILLISECONDS_OF_SILENCE = 10000
const MESSAGES = ['started', 'step', 'evaluated', 'saved', 'previewed', 'noted', 'finished', 'ended']
const ENDINGS = ['reconnected', 'execution_success', 'execution_interrupted', 'execution_error']

/** The panels that get the server's messages, one for each node. */
const panels = new Set()

// added at once, not only while there is a panel: ComfyUI warns of messages without a listener
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

function follow(node, element) {
  const panel = new TrainPanel(node, element)
  panels.add(panel)
  const nameWidget = node.widgets?.find((widget) => widget.name === 'run_name')
  if (nameWidget) after(nameWidget, 'callback', () => panel.ask())
  after(node, 'onRemoved', () => {
    panels.delete(panel)
    panel.destroy()
  })
}

class TrainPanel {
  #node
  #state = null // of the run, as run_state.js describes it
  #detail = null // the curve within the window that was zoomed to
  #zoomWindow = null
  #error = ''
  // one request at a time and at most one a second; #isStale: another one is needed afterwards
  #isStale = true
  #isAsking = false
  #timer = 0
  #asked = 0
  #heardAt = 0
  #isDestroyed = false
  #view
  #screen
  #silence = setInterval(() => {
    if (this.#state?.state === 'running' && performance.now() - this.#heardAt > MILLISECONDS_OF_SILENCE) this.ask()
  }, MILLISECONDS_OF_SILENCE)

  constructor(node, element) {
    this.#node = node
    this.#view = new TrainView(element, { onstop: () => this.#stop(), onzoom: (first, last) => this.#zoom(first, last) })
    this.#screen = redrawing(element, () => this.#view.show(this.#state, this.#detail, this.#error),
      () => { if (this.#isStale) this.ask() })
    this.#screen.ask()
  }

  ask() {
    this.#isStale = true
    if (this.#isAsking || this.#timer || this.#isDestroyed || !this.#screen.isVisible()) return
    const wait = Math.max(0, this.#asked + MILLISECONDS_BETWEEN_ASKING - performance.now())
    this.#timer = setTimeout(() => this.#load(), wait)
  }

  /** Takes the server's message wantune.<name>. */
  hear(name, message) {
    // a second browser has the graph under an id of its own, but shows the same run
    if (!isAbout(message, this.#node) && message.run !== this.#state?.run) return
    this.#heardAt = performance.now()
    const next = heard(this.#state, name, message)
    this.#state = next.state
    this.#screen.ask()
    if (next.ask) this.ask()
  }

  destroy() {
    this.#isDestroyed = true
    clearTimeout(this.#timer)
    clearInterval(this.#silence)
    this.#screen.stop()
    this.#view.destroy()
  }

  async #load() {
    this.#timer = 0
    this.#isAsking = true
    this.#isStale = false
    this.#asked = performance.now()
    try {
      const runName = this.#node.widgets?.find((widget) => widget.name === 'run_name')?.value
      const { run } = await get('node', { ...nodeKey(this.#node), run_name: runName })
      const answer = run && await get(pathOfRun(run), { points: MOST_POINTS })
      if (run !== this.#state?.run) this.#detail = null
      this.#state = answer ? fromAnswer(answer) : null
      this.#error = ''
    } catch (problem) {
      this.#error = problem.message
    }
    this.#isAsking = false
    this.#screen.now()
    if (this.#isStale) this.ask()
  }

  async #zoom(first, last) {
    this.#zoomWindow = last ? [first, last] : null
    if (!this.#state || !this.#zoomWindow || lastStep(this.#state.curve) <= MOST_POINTS) return
    const { run } = this.#state
    // a little more on either side, so that the lines reach the edges of the chart
    const margin = Math.ceil((last - first) / 20)
    const range = { first: Math.max(1, first - margin), last: last + margin }
    const answer = await get(pathOfRun(run), { points: MOST_POINTS, ...range }).catch(() => null)
    const isLate = this.#zoomWindow?.[0] !== first || this.#zoomWindow?.[1] !== last
    if (!answer || this.#state?.run !== run || isLate) return
    this.#detail = { first, last, curve: curveOf(answer) }
    this.#screen.now()
  }

  async #stop() {
    if (!this.#state) return
    this.#state = { ...this.#state, isStopping: true }
    this.#screen.now()
    try {
      const { stopping } = await post('stop', { run: this.#state.run })
      if (!stopping) this.ask()
    } catch (problem) {
      this.#error = problem.message
      this.#state = { ...this.#state, isStopping: false }
    }
    this.#screen.now()
  }
}
